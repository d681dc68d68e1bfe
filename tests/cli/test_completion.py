"""Shell completion: the scripts, as the shells run them."""

import shutil
import subprocess

import pytest

TABS = """
tab() {
  COMP_WORDS=("$@"); COMP_CWORD=$(( ${#@} - 1 )); COMPREPLY=()
  _lstm_mnist; echo "${COMPREPLY[@]}"
}
tab lstm-mnist tr
tab lstm-mnist train ro
tab lstm-mnist train --cell ""
tab lstm-mnist sweep smoke --opt
tab lstm-mnist train --run-dir ""
tab lstm-mnist predict run ""
tab lstm-mnist export ke
"""
EXPECTED = ["train", "rows rows-fast", "lstm gru layer_norm_lstm ur_lstm", "--optuna", "", "", "keras"]
"""Where nothing is proposed, the shell proposes files."""


def output(command_line, shell, text):
    """What a shell prints that has read its script, and then `text`."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = command_line("completion", shell).stdout
    done = subprocess.run([shell, "-c", script + text], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_bash_completes_commands_presets_options_and_their_values(command_line):
    assert output(command_line, "bash", TABS) == EXPECTED


def test_fish_completes_commands_presets_options_and_their_values(command_line):
    lines = ["lstm-mnist tr", "lstm-mnist train rows-", "lstm-mnist train --cell g", "lstm-mnist sweep --opt"]
    found = output(command_line, "fish", "\n".join(f"complete -C '{line}'" for line in lines))
    assert [line.split("\t")[0] for line in found] == ["train", "rows-fast", "gru", "--optuna"]


def test_the_script_for_zsh_is_that_for_bash(command_line):
    first, *rest = command_line("completion", "zsh").stdout.splitlines()
    assert first == "autoload -U +X bashcompinit && bashcompinit"
    assert rest == command_line("completion", "bash").stdout.splitlines()

"""`lstm-mnist completion`: a script with which a shell completes commands, presets, options and their values.

The scripts are static: to complete a word starts no Python.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lstm_mnist_jax.cli.arguments import Argument, Positional, arguments_of
from lstm_mnist_jax.cli.main import COMMANDS
from lstm_mnist_jax.cli.parsing import parse
from lstm_mnist_jax.config import PRESETS


@dataclass(frozen=True)
class CompletionArguments:
    """Print a script with which a shell completes the words of lstm-mnist. Where to put it:

    bash: lstm-mnist completion bash > ~/.local/share/bash-completion/completions/lstm-mnist

    zsh: source <(lstm-mnist completion zsh), in ~/.zshrc after compinit

    fish: lstm-mnist completion fish > ~/.config/fish/completions/lstm-mnist.fish
    """

    shell: Positional[Literal["bash", "zsh", "fish"]]
    """The shell."""


BASH = """\
_lstm_mnist() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" found=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    found="{commands}"
  else
    case "${{COMP_WORDS[1]}} $before $word" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$found" -- "$word"))
}}
complete -o default -F _lstm_mnist lstm-mnist
"""
"""Where there is no word to propose, bash proposes files (`-o default`)."""

ZSH = "autoload -U +X bashcompinit && bashcompinit\n"
"""zsh then takes scripts for bash."""


def completion(arguments: Sequence[str]) -> int:
    """`lstm-mnist completion`."""
    commands = {name: command.arguments for name, command in COMMANDS.items()}
    parsed = parse(CompletionArguments, arguments)
    if parsed.shell == "fish":
        print(fish_script(commands), end="")
    else:
        print(ZSH * (parsed.shell == "zsh") + bash_script(commands), end="")
    return 0


def bash_script(commands: Mapping[str, type]) -> str:
    """The script for bash."""
    cases = list[str]()
    for command, cls in commands.items():
        found = arguments_of(cls)
        options = [argument for argument in found if not argument.is_positional]
        flags, free = [flag for option in options for flag in _flags(option)], list[str]()
        for option in options:
            if option.choices:
                cases.append(f'"{command} --{option.name} "*) found="{" ".join(option.choices)}" ;;')
            elif option.hint is not bool:
                free.append(f'"{command} --{option.name} "*')
        if free:
            cases.append(f"{'|'.join(free)}) ;;")
        cases.append(f'"{command} "*" -"*) found="{" ".join(flags)}" ;;')
        if words := [word for argument in found if argument.is_positional for word in _words(argument)]:
            cases.append(f'"{command} "*) found="{" ".join(words)}" ;;')
    return BASH.format(commands=" ".join(commands), cases="\n".join(" " * 6 + case for case in cases))


def fish_script(commands: Mapping[str, type]) -> str:
    """The script for fish, with a line of help for each option."""
    lines = [f"complete -c lstm-mnist -n __fish_use_subcommand -f -a '{' '.join(commands)}'"]
    for command, cls in commands.items():
        start = f"complete -c lstm-mnist -n '__fish_seen_subcommand_from {command}'"
        for argument in arguments_of(cls):
            words, text = " ".join(_words(argument)), argument.help.split(". ")[0].rstrip(".").replace("'", r"\'")
            if argument.is_positional:
                lines += [f"{start} -f -a '{words}'"] if words else []
            elif argument.hint is bool:
                lines += [f"{start} -l {flag.removeprefix('--')} -d '{text}'" for flag in _flags(argument)]
            else:
                values = f" -x -a '{words}'" if words else " -r" if argument.takes_path else " -x"
                lines.append(f"{start} -l {argument.name}{values} -d '{text}'")
    return "\n".join(lines) + "\n"


def _flags(option: Argument) -> list[str]:
    """How an option is written, without its values."""
    return [f"--{option.name}"] + [f"--no-{option.name}"] * (option.hint is bool and option.default is True)


def _words(argument: Argument) -> tuple[str, ...]:
    """The words that an argument may be, if they are few."""
    return tuple(PRESETS) if argument.field == "preset" else argument.choices

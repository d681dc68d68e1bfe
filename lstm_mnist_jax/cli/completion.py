"""`lstm-mnist completion`: the completion of commands, presets, options and their values, as a script for a shell.

The scripts are static: pressing the tabulator starts no Python. Files are completed where an option takes any word.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import tyro

from lstm_mnist_jax.cli.arguments import Argument, arguments_of
from lstm_mnist_jax.cli.parsing import parse
from lstm_mnist_jax.config import PRESETS


@dataclass(frozen=True)
class CompletionArguments:
    """Print a script with which a shell completes the words of lstm-mnist.

    bash: lstm-mnist completion bash > ~/.local/share/bash-completion/completions/lstm-mnist

    zsh: in ~/.zshrc after compinit, source <(lstm-mnist completion zsh)

    fish: lstm-mnist completion fish > ~/.config/fish/completions/lstm-mnist.fish
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """The shell."""


BASH = """\
_lstm_mnist() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=""
  COMPREPLY=()
  if [ "$COMP_CWORD" = 1 ]; then
    words="{commands}"
  else
    case "${{COMP_WORDS[1]}} $before" in
{values}
      *" --"*) case "$word" in -*) ;; *) return;; esac;;
    esac
    [ -n "$words" ] || case "${{COMP_WORDS[1]}}" in
{options}
    esac
    case "$words,$word" in --*,-* | [!-]*,*) ;; *) return;; esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _lstm_mnist lstm-mnist
"""


def completion(arguments: Sequence[str]) -> int:
    """`lstm-mnist completion`."""
    parsed = parse(CompletionArguments, arguments)
    from lstm_mnist_jax.cli.main import argument_classes

    commands = {name: arguments_of(cls) for name, cls in argument_classes().items()}
    print(_fish(commands) if parsed.shell == "fish" else _bash(commands, parsed.shell == "zsh"), end="")
    return 0

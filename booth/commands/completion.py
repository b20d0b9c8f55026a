"""The command `completion`: print a script with which a shell completes commands and options."""

import argparse
from typing import Any

import shtab

from booth.commands.options import path

_SHELLS = {
    "bash": 'eval "$({0} completion bash)" in ~/.bashrc',
    "zsh": "{0} completion zsh > ~/.zfunc/_{0}, with ~/.zfunc in fpath",
    "fish": "{0} completion fish > ~/.config/fish/completions/{0}.fish",
}


def add_parser(commands: Any, package: str) -> None:
    parser = commands.add_parser("completion", help="print a script with which a shell completes commands and options")
    uses = "; ".join(use.format(package) for use in _SHELLS.values())
    parser.add_argument("shell", choices=tuple(_SHELLS), help=f"how to use it: {uses}")
    parser.set_defaults(run=run)


def run(package: str, options: argparse.Namespace) -> None:
    """Print the completion script of the shell that the options name."""
    for command in options.parser.commands.values():
        for action in command._actions:
            if action.type is path and action.choices is None:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(options.parser, options.shell))

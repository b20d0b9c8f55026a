"""The command `doctor`: say what may be wrong with photos, prompts and settings before training."""

import argparse
from typing import Any

from booth.commands.settings import add_short_form, read_short_form
from booth.data.doctor import advice
from booth.diffusion.backend import load_backend
from booth.train.checks import checked


def add_parser(commands: Any, package: str) -> None:
    parser = commands.add_parser("doctor", help="give advice about photos and prompts, without training")
    add_short_form(parser)
    parser.set_defaults(run=run)


def run(package: str, options: argparse.Namespace) -> None:
    """Print the advice about a config, one line for each piece of advice."""
    config, inputs = checked(load_backend(package), read_short_form(package, options, ""), None)
    lines = list(advice(config, inputs))
    for line in lines:
        print(line)
    if not lines:
        print(f"{len(inputs.instances)} photos: nothing to say against them")

"""The command `torchbooth convert`: turn a checkpoint that is a pickle into a safetensors file."""

import argparse
import importlib
from pathlib import Path
from typing import Any

from booth.commands.options import path
from booth.diffusion.backend import load_backend


def add_parser(commands: Any, package: str) -> None:
    if package != "torchbooth":  # only PyTorch reads pickles
        return
    parser = commands.add_parser(
        "convert", help="turn a checkpoint that is a pickle (.ckpt, .pt, .bin) into safetensors"
    )
    parser.add_argument("file", type=path, help="the checkpoint")
    parser.add_argument("--out", required=True, type=path, help="the new file, NAME.safetensors")
    parser.set_defaults(run=run)


def run(package: str, options: argparse.Namespace) -> None:
    """Read the pickle and write its tensors to the safetensors file of --out. Raise UserError if that fails."""
    load_backend(package)
    importlib.import_module(f"{package}.pickles").convert(Path(options.file), Path(options.out))

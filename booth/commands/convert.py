"""The command `torchbooth convert`: a checkpoint that is a pickle becomes a safetensors file."""

import argparse
import importlib
from pathlib import Path
from typing import Any

from booth.commands.options import path
from booth.diffusion.backend import load_backend


def add_parser(commands: Any, package: str) -> None:
    if package != "torchbooth":  # PyTorch reads pickles
        return
    parser = commands.add_parser("convert", help="checkpoint that is a pickle (.ckpt, .pt, .bin) -> safetensors")
    parser.add_argument("file", type=path, help="the checkpoint")
    parser.add_argument("--out", required=True, type=path, help="NAME.safetensors")
    parser.set_defaults(run=run)


def run(package: str, options: argparse.Namespace) -> None:
    """Write the file."""
    load_backend(package)
    importlib.import_module(f"{package}.pickles").convert(Path(options.file), Path(options.out))

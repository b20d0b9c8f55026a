"""The command `plan`: predict what a run needs on hardware that this machine does not have."""

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

from booth.commands.options import path
from booth.commands.settings import add_config, read_config
from booth.common.files import write_text
from booth.config.auto import with_numbers
from booth.config.validation import validate_plan
from booth.diffusion.backend import load_backend
from booth.train.trained_run import open_configured

_PHOTOS = 5  # the number of photos hardly changes the memory that a run needs


def add_parser(commands: Any, package: str) -> None:
    hardware = "TPU" if package == "jaxbooth" else "GPU"
    parser = commands.add_parser("plan", help=f"predict what a run needs on a {hardware}, without one")
    add_config(parser, required=True)
    if package == "jaxbooth":
        parser.add_argument(
            "--topology", help="a TPU slice such as v3:2x2 or v5e:2x4, or several: 2xv5e:2x4; default: mesh.topology"
        )
        parser.add_argument(
            "--find-batch", action="store_true", help="also find the largest train.batch_size that fits"
        )
    else:
        parser.add_argument("--gpu", help="a GPU's memory, such as 8GB: chooses techniques as memory.fit does")
    parser.add_argument("--json", type=path, help="file to write the figures to")
    parser.set_defaults(run=run)


def run(package: str, options: argparse.Namespace) -> None:
    """Print the plan, and write its figures to the file of --json."""
    config = read_config(options)
    backend_class = load_backend(package)
    validate_plan(config, backend_class.name)
    config = with_numbers(config, photos=_PHOTOS)
    pipeline = open_configured(config, config.model.revision, weights=False)
    chosen = (options.gpu,) if package == "torchbooth" else (options.topology, options.find_batch)
    plans = importlib.import_module(f"{package}.plan").run(config, pipeline, *chosen)
    if options.json:
        write_text(Path(options.json), json.dumps(plans, indent=1) + "\n")

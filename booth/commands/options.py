"""The options that name what a command works on: a model (--model, --from) or a checkpoint of a run (--run, --step);
and the hosts it works on."""

import argparse
import importlib
import logging
import os
from pathlib import Path

from booth.common.errors import UserError
from booth.models import lora_file
from booth.models.open import open_pipeline
from booth.models.pipeline import PipelineDir

log = logging.getLogger("booth")

path = os.path.expanduser  # the shell does not expand the ~ in --workdir=~/run


def add_source(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=path, help="folder of a diffusers pipeline, hub id, embedded, or single file")
    source.add_argument(
        "--run",
        dest="run_dir",
        type=path,
        help="a run folder: samples from its newest checkpoint, or from --step",
    )
    add_model(parser, "--model")
    parser.add_argument("--step", type=int, help="checkpoint of --run")


def add_model(parser: argparse.ArgumentParser, option: str) -> None:
    add_verify(parser)
    parser.add_argument("--revision", default="", help=f"branch, tag or commit of a hub {option}")
    parser.add_argument(
        "--model-config", default="", type=path,
        help=f"folder or hub id with the configs and tokenizer of a single file {option}",
    )  # fmt: skip


def open_model(options: argparse.Namespace) -> PipelineDir:
    folder = Path(options.model)
    if (folder / lora_file.FILE).is_file() and not (folder / "model_index.json").is_file():
        raise UserError(
            f"{folder} is a LoRA folder, not a pipeline; give a pipeline, give --run RUN (not RUN/lora) to sample from"
            " a run's LoRA, or use merge --lora"
        )
    return open_pipeline(options.model, revision=options.revision, config=options.model_config)


def check_of_run(options: argparse.Namespace, option: str) -> None:
    """Raise UserError if an option that belongs to --run is given with `option`, or one of `option` with --run."""
    if options.step is not None and not options.run_dir:
        raise UserError(f"--step names a checkpoint of --run; with {option} leave it out")
    for name in ("revision", "model_config"):
        if getattr(options, name) and options.run_dir:
            raise UserError(f"--{name.replace('_', '-')} belongs to {option}; with --run leave it out")


def add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verify", action="store_true", help="first compare a hub model's cached files with their hashes"
    )


def add_hosts(parser: argparse.ArgumentParser, package: str) -> None:
    """Add the options that name the processes of a run, which torchbooth's are told by torchrun."""
    if package == "jaxbooth":
        group = parser.add_argument_group("several hosts", "not needed on Cloud TPU and under srun")
        group.add_argument(
            "--coordinator", metavar="HOST:PORT", help="address of host 0; run the same command on each host"
        )
        group.add_argument("--hosts", type=int, metavar="N", help="number of hosts")
        group.add_argument("--host", type=int, metavar="K", help="number of this host, from 0; host 0 writes the files")
    parser.set_defaults(coordinator=None, hosts=None, host=None)


def join_hosts(package: str, options: argparse.Namespace) -> None:
    """Join the hosts of --coordinator if it is given. Raise UserError if only some of the three options are given."""
    named = (options.coordinator, options.hosts, options.host)
    if any(value is not None for value in named):
        if None in named:
            raise UserError("--coordinator, --hosts and --host go together; give all three on each host")
        importlib.import_module(f"{package}.hosts").start(*named)

"""One command line for both backends: train, sample, export; and jaxbooth plan."""

import argparse
import importlib
import json
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from booth import config as settings
from booth import loop, sample_command, space, tokens, xy_grid
from booth.adapters import adapter_of
from booth.backend import Backend
from booth.checkpoints import Checkpoints
from booth.doctor import advice
from booth.errors import UserError
from booth.export import check_target, export, export_size
from booth.inputs import as_trained
from booth.numbers import with_numbers
from booth.pipeline_dir import PipelineDir, open_pipeline
from booth.rundir import checkpoint_folder, pinned_revision, read_record, recorded_config, write_text
from booth.solvers import SOLVERS
from booth.space import readable
from booth.stopping import Stopped, deafness_ends
from booth.validation import validate, validate_plan

log = logging.getLogger("booth")

INTERRUPTED = 130  # as shells report Ctrl-C


def main(package: str, argv: Sequence[str] | None = None) -> int:
    """Runs a command of `jaxbooth` or `torchbooth`; returns the exit code. 2: something the user can mend."""
    _log_to_stderr()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with deafness_ends(package):
            options = _parse(package, arguments)
            options.run(package, options)
    except UserError as error:
        print(f"{package}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # no permission, a disk that is full or gone
        print(f"{package}: error: {error}; mend that and give the same command again", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"{package}: {stopped}, which is saved; the same command continues", file=sys.stderr)
        return stopped.code
    except KeyboardInterrupt:
        print(
            f"\n{package}: interrupted; the same command continues, training from its last checkpoint", file=sys.stderr
        )
        return INTERRUPTED
    return 0


def load_backend(package: str) -> type[Backend]:
    """The Backend class of `jaxbooth` or `torchbooth`; UserError if its framework is not installed."""
    try:
        return importlib.import_module(f"{package}.backend").Backend
    except ImportError as error:
        extra = package.removesuffix("booth")
        raise UserError(
            f"{package} cannot be loaded ({error}); install this project with its [{extra}] extra"
        ) from error


def _log_to_stderr() -> None:
    if not log.handlers:
        log.addHandler(_AboveProgress())
        log.setLevel(logging.INFO)
        log.propagate = False


class _AboveProgress(logging.Handler):
    """One line on stderr a message, above a progress bar that may be there."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        tqdm.write(prefix + record.getMessage(), file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message}; {self.prog} --help shows how it is used")


_path = os.path.expanduser  # the shell leaves the ~ of --workdir=~/run alone
_OVERRIDE = re.compile(r"--config\.([\w.]+)(?:=(.*))?$", re.DOTALL)


def _parse(package: str, arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(prog=package, description="DreamBooth fine-tuning of Stable Diffusion")
    commands = parser.add_subparsers(required=True, metavar="train|sample|export|doctor|plan")

    train = commands.add_parser(
        "train",
        help="photos -> tuned pipeline; the same command again resumes",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="fields, each overridden with --config.NAME=VALUE:\n" + settings.describe(),
    )
    train.add_argument("--config", required=True, type=_path, help=".py with get_config(), .yaml or .json")
    train.add_argument("--workdir", type=_path, help="the run folder")
    train.add_argument("--from-step", type=int, help="continue from this checkpoint instead of the newest")
    train.add_argument(
        "--accept-changes", action="store_true", help="a resumed run may have other steps or rates than it began with"
    )
    _add_verify(train)
    train.add_argument("--dry-run", action="store_true", help="check everything, print the resolved config, stop")
    if package == "jaxbooth":
        group = train.add_argument_group("several hosts", "not needed on Cloud TPU and under srun")
        group.add_argument("--coordinator", metavar="HOST:PORT", help="of host 0; give the same command on each host")
        group.add_argument("--hosts", type=int, metavar="N", help="how many there are")
        group.add_argument("--host", type=int, metavar="K", help="which one this is, from 0; host 0 has the photos")
    train.set_defaults(run=_train, coordinator=None, hosts=None, host=None)

    sample = commands.add_parser("sample", help="prompts -> PNGs and a grid")
    _add_source(sample)
    sample.add_argument("--prompt", action="append", default=[], help="may be given several times")
    sample.add_argument("--prompts", type=_path, metavar="FILE", help="one a line; # begins a comment")
    sample.add_argument("--negative-prompt", default="", help="what the images should not show")
    sample.add_argument("--solver", choices=SOLVERS, default="dpm++", help="how the noise is removed")
    sample.add_argument("--steps", type=int, default=25, help="denoising steps")
    sample.add_argument("--guidance", type=float, default=7.5, help="classifier-free guidance scale; 1 turns it off")
    sample.add_argument("--seeds", type=int, nargs="+", default=[0], help="one image for every prompt and seed")
    sample.add_argument("--size", help="512 or WIDTHxHEIGHT; default: the size the model was made for")
    sample.add_argument("--batch-size", default="4", help="images sampled at once; torchbooth: auto, as memory allows")
    for option, where in (("--x", "across"), ("--y", "down")):
        sample.add_argument(
            option, action="append", default=[], metavar="NAME=VALUE,...",
            help=f"a grid, xy.png, with these values {where}: {', '.join(xy_grid.AXES)} (prompts: between |)",
        )  # fmt: skip
    sample.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="compute type")
    sample.add_argument("--out", required=True, type=_path, help="folder for the images")
    sample.set_defaults(run=_sample)

    write = commands.add_parser("export", help="checkpoint -> diffusers pipeline folder")
    write.add_argument("--run", dest="run_dir", required=True, type=_path, help="the run folder")
    _add_verify(write)
    write.add_argument("--step", type=int, help="checkpoint; default: the newest")
    write.add_argument("--precision", choices=("source", "fp32", "fp16", "bf16"), default="source")
    write.add_argument("--out", required=True, type=_path, help="folder of the pipeline")
    write.set_defaults(run=_export)

    doctor = commands.add_parser("doctor", help="advice about photos and prompts, without training")
    doctor.add_argument("--config", required=True, type=_path, help=".py with get_config(), .yaml or .json")
    doctor.set_defaults(run=_doctor)

    hardware = "TPU" if package == "jaxbooth" else "GPU"
    plan = commands.add_parser("plan", help=f"what a run would need on a {hardware}, without one")
    plan.add_argument("--config", required=True, type=_path, help=".py with get_config(), .yaml or .json")
    if package == "jaxbooth":
        plan.add_argument("--topology", help="a TPU slice such as v3:2x2 or v5e:2x4; default: mesh.topology")
        plan.add_argument("--find-batch", action="store_true", help="also the largest train.batch_size that fits")
    else:
        plan.add_argument("--gpu", help="a card's memory such as 8GB: chooses techniques, as memory.fit does")
    plan.add_argument("--json", type=_path, help="file for the figures")
    plan.set_defaults(run=_plan)

    overrides = [match for argument in arguments if (match := _OVERRIDE.match(argument))]
    for override in overrides:
        if override[2] is None:
            raise UserError(f"{override[0]} must be written {override[0]}=VALUE")
    options = parser.parse_args([argument for argument in arguments if not _OVERRIDE.match(argument)])
    if overrides and options.run not in (_train, _plan, _doctor):
        raise UserError(f"{overrides[0][0]} belongs to train, doctor and plan; leave it out")
    options.overrides = [(match[1], match[2]) for match in overrides]
    return options


def _add_source(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=_path, help="folder of a diffusers pipeline, hub id owner/name, or embedded")
    source.add_argument(
        "--run",
        dest="run_dir",
        type=_path,
        help="a run folder: samples from its newest checkpoint, or from --step",
    )
    _add_verify(parser)
    parser.add_argument("--step", type=int, help="checkpoint of --run")
    parser.add_argument("--revision", default="", help="branch, tag or commit of a hub --model")


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verify", action="store_true", help="first compare a hub model's cached files with their hashes"
    )


def _train(package: str, options: argparse.Namespace) -> None:
    config = settings.resolved(settings.load_config(options.config, options.overrides))
    if not options.dry_run and not options.workdir:
        raise UserError("--workdir is missing; give the folder the run is to live in")
    backend_class = load_backend(package)
    if options.verify:
        revision = pinned_revision(options.workdir, config) if options.workdir else config.model.revision
        open_pipeline(config.model.source, config.model.variant, revision, weights=False).verify()
    if options.dry_run:
        validate(config, backend_class.name, backend_class.capabilities)
        backend_class.check(config)
        revision = pinned_revision(options.workdir, config) if options.workdir else ""
        inputs = loop.check_inputs(config, revision)
        config, pipeline = with_numbers(config, len(inputs.instances)), inputs.pipeline
        recorded = recorded_config(options.workdir) if options.workdir else None
        config = backend_class.fit(config, pipeline, recorded)
        if pipeline.model and (files := pipeline.to_download):
            log.info("a run would download %d files, %s", len(files), readable(pipeline.model.size(files)))
        print(config.to_json_best_effort(indent=1))
        return
    named = (options.coordinator, options.hosts, options.host)
    if any(value is not None for value in named):
        if None in named:
            raise UserError("--coordinator, --hosts and --host go together; give all three, on each host")
        importlib.import_module(f"{package}.hosts").start(*named)
    meant = None if options.accept_changes else [name for name, _ in options.overrides]
    loop.train(backend_class, config, options.workdir, options.from_step, meant)


def _doctor(package: str, options: argparse.Namespace) -> None:
    config = settings.resolved(settings.load_config(options.config, options.overrides))
    backend_class = load_backend(package)
    validate(config, backend_class.name, backend_class.capabilities)
    inputs = loop.check_inputs(config)
    lines = list(advice(config, inputs))
    for line in lines:
        print(line)
    if not lines:
        print(f"{len(inputs.instances)} photos: nothing to say against them")


def _plan(package: str, options: argparse.Namespace) -> None:
    config = settings.resolved(settings.load_config(options.config, options.overrides))
    backend_class = load_backend(package)
    validate_plan(config, backend_class.name, backend_class.capabilities)
    config = with_numbers(config, photos=5)  # how many there are hardly matters to memory
    pipeline = open_pipeline(config.model.source, config.model.variant, config.model.revision, weights=False)
    chosen = (options.gpu,) if package == "torchbooth" else (options.topology, options.find_batch)
    plans = importlib.import_module(f"{package}.plan").run(config, pipeline, *chosen)
    if options.json:
        write_text(Path(options.json), json.dumps(plans, indent=1) + "\n")


def _sample(package: str, options: argparse.Namespace) -> None:
    asked = sample_command.read_options(options)
    backend_class = load_backend(package)
    if options.step is not None and not options.run_dir:
        raise UserError("--step names a checkpoint of --run; with --model leave it out")
    if options.revision and options.run_dir:
        raise UserError("--revision belongs to --model; with --run leave it out")
    trained = _find(backend_class, options.run_dir, options.step, options.precision) if options.run_dir else None
    pipeline = trained.pipeline if trained else open_pipeline(options.model, revision=options.revision)
    if options.verify:
        pipeline.verify()
    sample_command.run(backend_class, options, asked, pipeline, trained)


def _export(package: str, options: argparse.Namespace) -> None:
    backend_class, out = load_backend(package), Path(options.out)
    trained = _find(backend_class, options.run_dir, options.step, "fp32")
    check_target(trained.pipeline, out)
    if options.verify:
        trained.pipeline.verify()
    size = export_size(trained.pipeline, options.precision, settings.trained_networks(trained.config))
    space.require([space.Need("the pipeline", out, size)], "make room, or export to another disk")
    backend, state = trained.restore(backend_class)
    tensors = backend.tensors(state)
    if adapter := adapter_of(trained.config, trained.pipeline):
        tensors = adapter.merged(trained.pipeline, tensors)
    if added := tokens.new_tokens(trained.config):
        tensors = tokens.enlarged(trained.pipeline, tensors)
    export(trained.pipeline, out, tensors, options.precision, trained.step, added)
    log.info("pipeline of step %d written to %s", trained.step, out)


@dataclass(frozen=True)
class _Trained:
    """A checkpoint of a run, and the pipeline it was trained from, with the noise schedule it was trained with."""

    config: Any
    pipeline: PipelineDir
    checkpoints: Checkpoints
    step: int

    def restore(self, backend_class: type[Backend]) -> tuple[Backend, Any]:
        """(backend, state with the trained weights)."""
        backend = backend_class(self.config)
        state = backend.init(backend.load(self.pipeline), training=False)
        return backend, self.checkpoints.restore(backend, state, self.step)


def _find(backend_class: type[Backend], run_dir: str, step: int | None, precision: str) -> _Trained:
    """A run's checkpoint; the newest if `step` is None. UserError if there is none, or it is another backend's."""
    record = read_record(run_dir)
    if record.backend != backend_class.name:
        raise UserError(f"--run {run_dir} was trained with {record.backend}booth; use that command for its checkpoints")
    folder = checkpoint_folder(Path(run_dir), record.config["checkpoint.dir"])
    checkpoints = Checkpoints(folder, record.run_id)
    step = checkpoints.find(step)
    if step is None:
        raise UserError(f"--run {run_dir} has no checkpoint yet")
    config = settings.default_config()
    for name, value in record.config.items():
        settings.set_field(config, name, value)
    config.train.precision = precision
    config.train.attention = "auto"
    config.mesh.fsdp = 1  # this machine may have other devices than the one that trained
    config.train.optimizer = "adamw"  # none is needed, so its package neither
    config.train.compile, config.memory.weights, config.memory.fit = "none", "fp32", ""
    pipeline = open_pipeline(config.model.source, config.model.variant, pinned_revision(run_dir, config))
    _check_base(Path(run_dir), pipeline)
    return _Trained(config, as_trained(pipeline, config), checkpoints, step)


def _check_base(run_dir: Path, pipeline: PipelineDir) -> None:
    """UserError if the model is not the one that the run was trained from."""
    recorded = json.loads((run_dir / "manifest.json").read_text(encoding="utf-8"))["model weights"]
    changed = [name for name, sha256 in recorded.items() if pipeline.weights_hash(name) != sha256]
    if changed:
        raise UserError(
            f"model.source={pipeline.path} changed since {run_dir} was trained ({', '.join(changed)}); put it back"
        )

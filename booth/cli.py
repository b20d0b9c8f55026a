"""One command line for both backends: train, sample, export, doctor, plan; and torchbooth convert."""

import argparse
import importlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from booth import config as settings
from booth import export as folder_export
from booth import export_single_file, loop, sample_command, space, tokens, xy_grid
from booth.adapters import adapter_of
from booth.backend import Backend
from booth.checkpoints import Checkpoints
from booth.doctor import advice
from booth.errors import UserError
from booth.hub import DATASET, MODEL
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

    write = commands.add_parser("export", help="checkpoint or pipeline -> diffusers pipeline folder or single file")
    exported = write.add_mutually_exclusive_group(required=True)
    exported.add_argument("--run", dest="run_dir", type=_path, help="a run folder: its newest checkpoint, or --step")
    exported.add_argument("--from", dest="model", type=_path, help="a pipeline: folder, hub id, embedded, single file")
    _add_model(write, "--from")
    write.add_argument("--step", type=int, help="checkpoint of --run")
    write.add_argument("--format", choices=("diffusers", "single-file"), default="diffusers")
    write.add_argument("--precision", choices=("source", "fp32", "fp16", "bf16"), default="source")
    write.add_argument("--out", required=True, type=_path, help="folder of the pipeline, or NAME.safetensors")
    write.add_argument("--title", default="", help="of a single file; default: its name")
    write.add_argument("--trigger-phrase", help="of a single file; default: the prompt that --run trained with")
    write.set_defaults(run=_export)

    if package == "torchbooth":
        convert = commands.add_parser("convert", help="checkpoint that is a pickle (.ckpt, .pt, .bin) -> safetensors")
        convert.add_argument("file", type=_path, help="the checkpoint")
        convert.add_argument("--out", required=True, type=_path, help="NAME.safetensors")
        convert.set_defaults(run=_convert)

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
    source.add_argument("--model", type=_path, help="folder of a diffusers pipeline, hub id, embedded, or single file")
    source.add_argument(
        "--run",
        dest="run_dir",
        type=_path,
        help="a run folder: samples from its newest checkpoint, or from --step",
    )
    _add_model(parser, "--model")
    parser.add_argument("--step", type=int, help="checkpoint of --run")


def _add_model(parser: argparse.ArgumentParser, option: str) -> None:
    _add_verify(parser)
    parser.add_argument("--revision", default="", help=f"branch, tag or commit of a hub {option}")
    parser.add_argument(
        "--model-config", default="", type=_path,
        help=f"of a single file {option}: folder or hub id that it has configs and tokenizer from",
    )  # fmt: skip


def _open_model(options: argparse.Namespace) -> PipelineDir:
    return open_pipeline(options.model, revision=options.revision, config=options.model_config)


def _check_of_run(options: argparse.Namespace, option: str) -> None:
    """UserError for an option of the other of --run and `option`."""
    if options.step is not None and not options.run_dir:
        raise UserError(f"--step names a checkpoint of --run; with {option} leave it out")
    for name in ("revision", "model_config"):
        if getattr(options, name) and options.run_dir:
            raise UserError(f"--{name.replace('_', '-')} belongs to {option}; with --run leave it out")


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
        _open_configured(config, revision, weights=False).verify()
    if options.dry_run:
        validate(config, backend_class.name, backend_class.capabilities)
        backend_class.check(config)
        kept = [pinned_revision(options.workdir, config, kind) for kind in (MODEL, DATASET)] if options.workdir else []
        inputs = loop.check_inputs(config, *kept)
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
    pipeline = _open_configured(config, config.model.revision, weights=False)
    chosen = (options.gpu,) if package == "torchbooth" else (options.topology, options.find_batch)
    plans = importlib.import_module(f"{package}.plan").run(config, pipeline, *chosen)
    if options.json:
        write_text(Path(options.json), json.dumps(plans, indent=1) + "\n")


def _sample(package: str, options: argparse.Namespace) -> None:
    asked = sample_command.read_options(options)
    backend_class = load_backend(package)
    _check_of_run(options, "--model")
    trained = _find(backend_class, options.run_dir, options.step, options.precision) if options.run_dir else None
    pipeline = trained.pipeline if trained else _open_model(options)
    if options.verify:
        pipeline.verify()
    sample_command.run(backend_class, options, asked, pipeline, trained)


def _export(package: str, options: argparse.Namespace) -> None:
    out, single = Path(options.out), options.format == "single-file"
    _check_of_run(options, "--from")
    if not single and (options.title or options.trigger_phrase is not None):
        raise UserError("--title and --trigger-phrase are said in single files; leave them out, or give --format")
    if not single and out.suffix == ".safetensors":
        raise UserError(f"--out {out} is named as a single file; give --format single-file, or a folder")
    trained = _find(load_backend(package), options.run_dir, options.step, "fp32") if options.run_dir else None
    pipeline = trained.pipeline if trained else _open_exported(options)
    (export_single_file if single else folder_export).check_target(pipeline, out)
    if options.verify:
        pipeline.verify()
    networks = settings.trained_networks(trained.config) if trained else ()
    size = (
        export_single_file.file_size(pipeline, options.precision, networks)
        if single
        else folder_export.export_size(pipeline, options.precision, networks)
    )
    what = "the checkpoint" if single else "the pipeline"
    space.require([space.Need(what, out, size)], "make room, or export to another disk")
    tensors = trained.tensors(load_backend(package)) if trained else iter(())
    added = tokens.new_tokens(trained.config) if trained else ()
    if single:
        spoken = trained.config.instance.prompt.replace("{caption}", "").strip(" ,") if trained else ""
        for token, file in zip(added, tokens.file_names(added), strict=True):
            spoken = spoken.replace(token, Path(file).stem)  # as WebUIs call an embedding
        phrase = spoken if options.trigger_phrase is None else options.trigger_phrase
        resolution = trained.config.data.resolution if trained else None
        kept = (tensor for tensor in tensors if tensor[1] != tokens.ROWS)
        export_single_file.write(
            pipeline, out, kept, options.precision, networks, title=options.title, resolution=resolution,
            trigger_phrase=phrase,
        )  # fmt: skip
        if added:
            log.info("%s: no WebUI takes new words from a checkpoint; give it the files in %s/tokens", ", ".join(added),
                     options.run_dir)  # fmt: skip
    else:
        if added:
            tensors = tokens.enlarged(pipeline, tensors)
        step = trained.step if trained else None
        folder_export.export(pipeline, out, tensors, options.precision, step, added)
    of = f"pipeline of step {trained.step}" if trained else str(options.model)
    log.info("%s written to %s", of, out)


def _open_exported(options: argparse.Namespace) -> PipelineDir:
    folder = Path(options.model)
    if (folder / "config.json").is_file() and not (folder / "model_index.json").is_file():
        raise UserError(f"--from {folder} is a run folder; give it with --run, or its {folder / 'pipeline'}")
    return _open_model(options)


def _convert(package: str, options: argparse.Namespace) -> None:
    load_backend(package)
    importlib.import_module(f"{package}.pickles").convert(Path(options.file), Path(options.out))


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

    def tensors(self, backend_class: type[Backend]) -> Iterator[tuple[str, str, np.ndarray]]:
        """(component, name, array) of all that was trained, adapters merged."""
        backend, state = self.restore(backend_class)
        tensors = backend.tensors(state)
        if adapter := adapter_of(self.config, self.pipeline):
            tensors = adapter.merged(self.pipeline, tensors)
        return tensors


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
    pipeline = _open_configured(config, pinned_revision(run_dir, config))
    _check_base(Path(run_dir), pipeline)
    return _Trained(config, as_trained(pipeline, config), checkpoints, step)


def _check_base(run_dir: Path, pipeline: PipelineDir) -> None:
    """UserError if the model is not the one that the run was trained from."""
    recorded = json.loads((run_dir / "manifest.json").read_text(encoding="utf-8"))["model weights"]
    changed = [name for name, sha256 in recorded.items() if pipeline.weights_hash(name) != sha256]
    if changed:
        raise UserError(
            f"model.source={pipeline.where} changed since {run_dir} was trained ({', '.join(changed)}); put it back"
        )


def _open_configured(config: Any, revision: str, *, weights: bool = True) -> PipelineDir:
    model = config.model
    return open_pipeline(model.source, model.variant, revision, config=model.config, weights=weights)

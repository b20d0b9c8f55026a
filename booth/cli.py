"""One command line for both backends: train, sample, export, merge, report, doctor, plan; and torchbooth convert."""

import argparse
import importlib
import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from booth import config as settings
from booth import export as folder_export
from booth import export_single_file, loop, lora_file, lora_merge, lora_metadata, pictures, report, space, tokens
from booth.adapters import adapter_of
from booth.backend import Backend
from booth.checkpoints import Checkpoints
from booth.doctor import advice
from booth.errors import UserError
from booth.fields import SEED
from booth.hub import DATASET, MODEL
from booth.inputs import as_trained, load_tokenizer
from booth.numbers import with_numbers
from booth.pipeline_dir import PipelineDir, open_pipeline
from booth.progress import progress
from booth.rundir import checkpoint_folder, locked, pinned_revision, read_record, recorded_config, write_text
from booth.sampling import ImageRequest, Sampler
from booth.solvers import SOLVERS
from booth.space import readable
from booth.stopping import Stopped, deafness_ends
from booth.validation import check_capabilities, validate, validate_plan

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
    commands = parser.add_subparsers(required=True, metavar="train|sample|export|merge|report|doctor|plan")

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
    sample.add_argument("--prompt", action="append", required=True, help="may be given several times")
    sample.add_argument("--negative-prompt", default="", help="what the images should not show")
    sample.add_argument("--solver", choices=SOLVERS, default="dpm++", help="how the noise is removed")
    sample.add_argument("--steps", type=int, default=25, help="denoising steps")
    sample.add_argument("--guidance", type=float, default=7.5, help="classifier-free guidance scale; 1 turns it off")
    sample.add_argument("--seeds", type=int, nargs="+", default=[0], help="one image for every prompt and seed")
    sample.add_argument("--size", help="512 or WIDTHxHEIGHT; default: the size the model was made for")
    sample.add_argument("--batch-size", type=int, default=4, help="images sampled at once")
    sample.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="compute type")
    sample.add_argument("--out", required=True, type=_path, help="folder for the images")
    sample.set_defaults(run=_sample)

    write = commands.add_parser("export", help="checkpoint or model -> diffusers pipeline, single file, or LoRA file")
    exported = write.add_mutually_exclusive_group(required=True)
    exported.add_argument("--run", dest="run_dir", type=_path, help="a run folder: its newest checkpoint, or --step")
    exported.add_argument(
        "--from", dest="model", type=_path,
        help="a pipeline: folder, hub id, embedded, single file; or a LoRA file, to write it in another format",
    )  # fmt: skip
    _add_model(write, "--from")
    write.add_argument("--step", type=int, help="checkpoint of --run")
    write.add_argument(
        "--format", choices=("diffusers", "single-file", *lora_file.FORMATS), default="diffusers",
        help="a pipeline folder; one checkpoint file for WebUIs; or the LoRA alone, for diffusers (peft) or WebUIs"
        " (kohya)",
    )  # fmt: skip
    write.add_argument("--precision", choices=("source", "fp32", "fp16", "bf16"), default="source")
    write.add_argument("--out", required=True, type=_path, help="folder of the pipeline, or NAME.safetensors")
    write.add_argument("--title", default="", help="of a file for WebUIs; default: its name")
    write.add_argument("--trigger-phrase", help="of a file for WebUIs; default: the prompt that --run trained with")
    write.set_defaults(run=_export)

    merge = commands.add_parser("merge", help="pipeline and LoRA files -> diffusers pipeline folder")
    merge.add_argument("--from", dest="model", required=True, type=_path, help="a pipeline: folder, hub id, embedded")
    _add_model(merge, "--from")
    merge.add_argument("--lora", action="append", required=True, type=_path, help="file; may be given several times")
    merge.add_argument("--weight", action="append", type=float, default=[], help="of each --lora, in order; default: 1")
    merge.add_argument("--precision", choices=("source", "fp32", "fp16", "bf16"), default="source")
    merge.add_argument("--out", required=True, type=_path, help="folder of the pipeline")
    merge.set_defaults(run=_merge)
    look = commands.add_parser("report", help="RUN/report.html: what a run has made so far, to look at")
    look.add_argument("run_dir", metavar="RUN", type=_path, help="the run folder, of either backend")
    look.set_defaults(run=_report)

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


def _report(package: str, options: argparse.Namespace) -> None:
    folder = Path(options.run_dir)
    read_record(folder)  # nothing is written into another folder, not even a lock
    with locked(folder):
        log.info("written: %s", report.write(folder))


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
    for seed in options.seeds:
        if not SEED.holds(seed):
            raise UserError(f"--seeds {seed} must be {SEED.text}")
    if options.batch_size < 1:
        raise UserError(f"--batch-size {options.batch_size} must be at least 1")
    if not 0 <= options.guidance < math.inf:
        raise UserError(f"--guidance {options.guidance} must be a finite number, at least 0")
    backend_class = load_backend(package)
    _check_of_run(options, "--model")
    trained = _find(backend_class, options.run_dir, options.step, options.precision) if options.run_dir else None
    pipeline = trained.pipeline if trained else _open_model(options)
    if options.verify:
        pipeline.verify()
    sampler = Sampler(
        pipeline,
        load_tokenizer(pipeline, tokens.new_tokens(trained.config) if trained else ()),
        _size(options.size, pipeline),
        options.solver,
        options.steps,
        options.guidance,
        options.batch_size,
    )
    sampler.check()
    config = trained.config if trained else _inference_config(options.precision)
    try:
        check_capabilities(config, backend_class.name, backend_class.capabilities)
        backend_class.check(config)
    except UserError as error:
        raise UserError(str(error).replace("train.precision=", "--precision ")) from error
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)  # if it cannot be made, then better now than after sampling
    if trained:
        backend, state = trained.restore(backend_class)
        models = backend.models(state)
    else:
        backend = backend_class(config)
        models = backend.load(pipeline)
    requests = [
        ImageRequest(prompt, seed, options.negative_prompt) for prompt in options.prompt for seed in options.seeds
    ]
    images = []
    made = _advised(sampler.images(backend, models, requests))
    for index, image in progress(made, desc="sampling", total=len(requests), unit="image"):
        request = requests[index]
        name = re.sub(r"\W+", "-", request.prompt).strip("-")[:40]
        parts = (f"{index:03d}", name, f"seed{request.seed}")
        pictures.save(Image.fromarray(image), out / f"{'-'.join(filter(None, parts))}.png")
        images.append(image)
    captions = [f"{request.prompt} (seed {request.seed})" for request in requests]
    pictures.save(pictures.grid(images, captions, columns=len(options.seeds)), out / "grid.png")
    log.info("%d images and grid.png written to %s", len(images), out)


def _advised(images: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """The same; a UserError for want of memory says what this command can change."""
    try:
        yield from images
    except UserError as error:
        if not str(error).startswith("out of memory"):
            raise
        raise UserError(f"{str(error).partition(';')[0]}; lower --batch-size or --size") from error


def _export(package: str, options: argparse.Namespace) -> None:
    out, single = Path(options.out), options.format == "single-file"
    if options.format in lora_file.FORMATS:
        _export_lora(package, options)
        return
    _check_of_run(options, "--from")
    if not single and (options.title or options.trigger_phrase is not None):
        raise UserError("--title and --trigger-phrase are said in files for WebUIs; leave them out, or give --format")
    if not single and out.suffix == ".safetensors":
        raise UserError(f"--out {out} is named as a file; give --format single-file, kohya or peft, or a folder")
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
        spoken = tokens.spoken_prompt(trained.config) if trained else ""
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


def _export_lora(package: str, options: argparse.Namespace) -> None:
    out, phrase = Path(options.out), options.trigger_phrase
    if options.format != "kohya" and (options.title or phrase is not None):
        raise UserError("--title and --trigger-phrase are said in kohya files; leave them out, or give --format kohya")
    if options.model and (options.verify or options.step is not None):
        raise UserError(f"--{'verify' if options.verify else 'step'} belongs to --run; with --from leave it out")
    lora_file.check_target(out)
    if options.model:
        file = lora_file.read_lora(Path(options.model))
        updates = file.layers
        about = lora_metadata.about_file(file.metadata, updates, out.stem, options.title, phrase or "")
    else:
        backend_class = load_backend(package)
        trained = _find(backend_class, options.run_dir, options.step, "fp32")
        adapter = adapter_of(trained.config, trained.pipeline)
        if adapter is None:
            raise UserError(f"--run {options.run_dir} trained no LoRA (adapter.kind=none); leave --format out")
        if options.verify:
            trained.pipeline.verify()
        backend, state = trained.restore(backend_class)
        updates = lora_file.updates_of(adapter, backend.tensors(state))
        about = lora_metadata.about_run(trained.config, trained.pipeline, out.stem, options.title, phrase)
    lora_file.require_space(out, updates.values())
    lora_file.write(out, updates, options.format, options.precision, about)
    log.info("LoRA written to %s", out)
    if options.run_dir and (added := tokens.new_tokens(trained.config)):
        log.info("%s: new words are not in it; they are the files in %s/tokens", ", ".join(added), options.run_dir)
    if options.run_dir and trained.config.train.zero_terminal_snr:
        log.info(lora_file.ZERO_SNR)


def _merge(package: str, options: argparse.Namespace) -> None:
    paths, out = [Path(path) for path in options.lora], Path(options.out)
    weights = lora_merge.weights_of(paths, options.weight)
    loras = [lora_file.read_lora(path) for path in paths]
    pipeline = _open_model(options)
    folder_export.check_target(pipeline, out)
    if options.verify:
        pipeline.verify()
    for lora in loras:
        lora_merge.check_fits(pipeline, lora)
    size = folder_export.export_size(pipeline, options.precision, pipeline.family.trainable)
    space.require([space.Need("the pipeline", out, size)], "make room, or merge to another disk")
    tensors = lora_merge.merged(pipeline, loras, weights)
    folder_export.export(pipeline, out, tensors, options.precision, merged=lora_merge.record(loras, weights))
    log.info("%s with %s written to %s", options.model, ", ".join(options.lora), out)


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


def _inference_config(precision: str) -> Any:
    config = settings.default_config()
    config.train.precision = precision
    return config


def _size(text: str | None, pipeline: PipelineDir) -> tuple[int, int]:
    if text is None:
        unet, vae = pipeline.component_config("unet"), pipeline.component_config("vae")
        if not isinstance(unet.get("sample_size"), int):
            raise UserError(
                f"--size is missing: {pipeline.path}/unet/config.json names no sample_size; give one such as 512"
            )
        side = unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
        return side, side
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match:
        raise UserError(f"--size {text!r} must be a number such as 512, or WIDTHxHEIGHT such as 768x512")
    return int(match[1]), int(match[2] or match[1])

"""The command `export`: write a checkpoint or a model as a pipeline folder, a file for WebUIs, or a LoRA file."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from booth.commands.options import add_model, check_of_run, open_model, path
from booth.common import disk_space
from booth.common.errors import UserError
from booth.config.trained import trained_networks
from booth.data.prompts import spoken_prompt
from booth.diffusion.backend import Backend, load_backend
from booth.evaluate import results
from booth.models import export_folder as folder_export
from booth.models import export_single_file, lora_file, lora_metadata, new_tokens
from booth.models.adapters import adapter_of, said_of_unusual
from booth.models.pipeline import PipelineDir
from booth.train.trained_run import Trained, find_trained

log = logging.getLogger("booth")

EMBEDDINGS = tuple(new_tokens.LAYOUTS)  # the values of --format that write new tokens alone


def add_parser(commands: Any, package: str) -> None:
    parser = commands.add_parser(
        "export", help="write a pipeline folder, single file or LoRA file of a checkpoint or model"
    )
    exported = parser.add_mutually_exclusive_group(required=True)
    exported.add_argument("--run", dest="run_dir", type=path, help="a run folder: its newest checkpoint, or --step")
    exported.add_argument(
        "--from", dest="model", type=path,
        help="a pipeline: folder, hub id, embedded, single file; or a LoRA file, to write it in another format",
    )  # fmt: skip
    add_model(parser, "--from")
    parser.add_argument("--step", type=int, help="checkpoint of --run")
    parser.add_argument("--best", action="store_true", help="the checkpoint of --run that `evaluate` found best")
    parser.add_argument(
        "--format", default="diffusers",
        choices=("diffusers", "single-file", *lora_file.FORMATS, *EMBEDDINGS),
        help="a pipeline folder; one checkpoint file for WebUIs; the LoRA alone, for diffusers (peft) or WebUIs"
        " (kohya); or new tokens alone, as diffusers and WebUIs read them (embedding) or in kohya's layout"
        " (emb_params)",
    )  # fmt: skip
    parser.add_argument("--precision", choices=("source", "fp32", "fp16", "bf16"), default="source")
    parser.add_argument("--out", required=True, type=path, help="folder of the pipeline, or NAME.safetensors")
    parser.add_argument("--title", default="", help="title of a file for WebUIs; default: its name")
    parser.add_argument("--trigger-phrase", help="for a file for WebUIs; default: the prompt that --run trained with")
    parser.set_defaults(run=run)


def run(package: str, options: argparse.Namespace) -> None:
    """Write the file or folder that --format names. Raise UserError if the options or the target do not allow it."""
    out, single = Path(options.out), options.format == "single-file"
    if options.best and (options.step is not None or not options.run_dir):
        raise UserError("--best chooses a checkpoint of --run; give --run, and no --step")
    check_of_run(options, "--from")
    if options.format in (*lora_file.FORMATS, *EMBEDDINGS):
        (_export_embeddings if options.format in EMBEDDINGS else _export_lora)(package, options)
        return
    if not single and (options.title or options.trigger_phrase is not None):
        raise UserError("--title and --trigger-phrase are only for files for WebUIs; leave them out, or give --format")
    if not single and out.suffix == ".safetensors":
        raise UserError(f"--out {out} is the name of a file; give --format single-file, kohya or peft, or a folder")
    trained = _find_trained(load_backend(package), options) if options.run_dir else None
    pipeline = trained.pipeline if trained else _open_exported(options)
    added = new_tokens.new_tokens(trained.config) if trained else ()
    (export_single_file if single else folder_export).check_target(pipeline, out)
    if trained and not single and (folder_export.exported_step(out) or 0) > trained.step:
        raise UserError(
            f"--out {out} holds an export of step {folder_export.exported_step(out)}, and this is step {trained.step};"
            " choose another folder"
        )
    words = _words_beside(out, added) if single else []
    if options.verify:
        pipeline.verify()
    networks = trained_networks(trained.config) if trained else ()
    size = (
        export_single_file.file_size(pipeline, options.precision, networks)
        if single
        else folder_export.export_size(pipeline, options.precision, networks)
    )
    what = "the checkpoint" if single else "the pipeline"
    disk_space.require([disk_space.Need(what, out, size)], "make room, or export to another disk")
    tensors = trained.tensors(load_backend(package)) if trained else iter(())
    if single:
        spoken = spoken_prompt(trained.config, f"{out.stem}-") if trained else ""
        phrase = spoken if options.trigger_phrase is None else options.trigger_phrase
        resolution = trained.config.data.resolution if trained else None
        rows: list[np.ndarray] = []
        export_single_file.write(
            pipeline, out, new_tokens.set_aside(tensors, rows), options.precision, networks, title=options.title,
            resolution=resolution, trigger_phrase=phrase,
        )  # fmt: skip
        if trained and trained.config.train.zero_terminal_snr:
            log.info("a checkpoint file cannot record this: %s", lora_file.ZERO_SNR)
        _write_words(words, added, rows)
    else:
        if added:
            tensors = new_tokens.enlarged(pipeline, tensors)
        step = trained.step if trained else None
        folder_export.export(pipeline, out, tensors, options.precision, step, added)
    of = f"pipeline of step {trained.step}" if trained else str(options.model)
    log.info("%s written to %s", of, out)


def _find_trained(backend_class: type[Backend], options: argparse.Namespace) -> Trained:
    """Return the checkpoint of --run that --step or --best names, or the newest. Raise UserError if there is none."""
    if not options.best:
        return find_trained(backend_class, options.run_dir, options.step, "fp32")
    step, identity = results.best_checkpoint(options.run_dir)
    trained = find_trained(backend_class, options.run_dir, step, "fp32")
    if trained.checkpoints.identity(step) != identity:
        raise UserError(
            f"--best: step {step} of {options.run_dir} was trained again after it was evaluated; evaluate it again"
        )
    scored = results.read(Path(options.run_dir))
    steps = trained.checkpoints.steps()
    if left := [at for at in steps if scored and not scored.find(at, trained.checkpoints.identity(at))]:
        named = f"steps {', '.join(map(str, left))} have" if len(left) > 1 else f"step {left[0]} has"
        log.warning("--best: %s no score; evaluate again", named)
    log.info("the best checkpoint is that of step %d", step)
    return trained


def _words_beside(out: Path, added: Sequence[str]) -> list[Path]:
    """Return the files for new tokens, which stand beside the exported file, as it cannot hold tokens.

    Raise UserError if one of them exists already.
    """
    files = new_tokens.files_beside(out, added)
    if there := [file for file in files if file.exists()]:
        raise UserError(f"--out {out}: {there[0]}, the file of a new token, exists; choose another name")
    return files


def _write_words(
    files: Sequence[Path], added: Sequence[str], rows: Sequence[np.ndarray], layout: str = EMBEDDINGS[0]
) -> None:
    new_tokens.write_embeddings(files, added, rows, layout)
    for file, token in zip(files, added, strict=True):
        log.info("the new token %s is written to %s; in WebUIs the file's name is its word", token, file)


def _check_no_run(options: argparse.Namespace) -> None:
    folder = Path(options.model)
    if (folder / "config.json").is_file() and not (folder / "model_index.json").is_file():
        hint = "" if options.format in lora_file.FORMATS else f", or its {folder / 'pipeline'}"
        raise UserError(f"--from {folder} is a run folder; give it with --run{hint}")


def _open_exported(options: argparse.Namespace) -> PipelineDir:
    _check_no_run(options)
    return open_model(options)


def _export_lora(package: str, options: argparse.Namespace) -> None:
    out, phrase = Path(options.out), options.trigger_phrase
    if options.format != "kohya" and (options.title or phrase is not None):
        raise UserError("--title and --trigger-phrase are only for kohya files; leave them out, or give --format kohya")
    if options.model:
        for name in ("verify", "revision", "model_config"):
            if getattr(options, name):
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} does not apply to --from with a LoRA file; leave it out")
    lora_file.check_target(out)
    added: Sequence[str] = ()
    rows: list[np.ndarray] = []
    words: list[Path] = []
    if options.model:
        _check_no_run(options)
        file = lora_file.read_lora(Path(options.model))
        updates = file.layers
        about = lora_metadata.about_file(file.metadata, updates, out.stem, options.title, phrase or "")
    else:
        backend_class = load_backend(package)
        trained = _find_trained(backend_class, options)
        adapter = adapter_of(trained.config, trained.pipeline)
        if adapter is None:
            hint = f", or give --format {EMBEDDINGS[0]}" if new_tokens.new_tokens(trained.config) else ""
            raise UserError(f"--run {options.run_dir} trained no LoRA (adapter.kind=none); leave --format out{hint}")
        added = new_tokens.new_tokens(trained.config)
        words = _words_beside(out, added)
        if options.verify:
            trained.pipeline.verify()
        backend, state = trained.restore(backend_class)
        updates = lora_file.updates_of(adapter, new_tokens.set_aside(backend.tensors(state), rows))
        if phrase is None:
            phrase = spoken_prompt(trained.config, f"{out.stem}-")
        about = lora_metadata.about_run(trained.config, trained.pipeline, out.stem, options.title, phrase)
    if line := said_of_unusual(updates):
        log.info(line)
    lora_file.require_space(out, updates.values())
    lora_file.write(out, updates, options.format, options.precision, about)
    log.info("LoRA written to %s", out)
    _write_words(words, added, rows)
    if options.run_dir and trained.config.train.zero_terminal_snr:
        log.info(lora_file.ZERO_SNR)


def _export_embeddings(package: str, options: argparse.Namespace) -> None:
    """Write the new tokens of a checkpoint.

    One token goes to the file of --out; several go to files that are named after that file and the tokens.
    Raise UserError if the options or the run do not allow it.
    """
    out = Path(options.out)
    if not options.run_dir:
        raise UserError(f"--format {options.format} is for the new tokens of --run; with --from leave it out")
    if options.title or options.trigger_phrase is not None or options.precision not in ("source", "fp32"):
        raise UserError(
            f"--format {options.format} writes float32 and no title; leave --precision, --title and --trigger-phrase"
            " out"
        )
    lora_file.check_target(out)
    backend_class = load_backend(package)
    trained = _find_trained(backend_class, options)
    added = new_tokens.new_tokens(trained.config)
    if not added:
        raise UserError(f"--run {options.run_dir} has no new tokens (tokens.add is empty); leave --format out")
    files = [out] if len(added) == 1 else _words_beside(out, added)
    if options.verify:
        trained.pipeline.verify()
    backend, state = trained.restore(backend_class)
    rows: list[np.ndarray] = []
    for _ in new_tokens.set_aside(backend.tensors(state), rows):
        pass
    _write_words(files, added, rows, options.format)

"""The commands that write models: export, merge and torchbooth convert."""

import argparse
import importlib
import logging
from pathlib import Path

from booth import config as settings
from booth import evaluation, export_single_file, lora_file, lora_merge, lora_metadata, space, tokens
from booth import export as folder_export
from booth.adapters import adapter_of
from booth.backend import Backend, load_backend
from booth.errors import UserError
from booth.model_options import Trained, check_of_run, find_trained, open_model
from booth.pipeline_dir import PipelineDir

log = logging.getLogger("booth")


def export(package: str, options: argparse.Namespace) -> None:
    out, single = Path(options.out), options.format == "single-file"
    if options.best and (options.step is not None or not options.run_dir):
        raise UserError("--best chooses a checkpoint of --run; give --run, and no --step")
    if options.format in lora_file.FORMATS:
        _export_lora(package, options)
        return
    check_of_run(options, "--from")
    if not single and (options.title or options.trigger_phrase is not None):
        raise UserError("--title and --trigger-phrase are said in files for WebUIs; leave them out, or give --format")
    if not single and out.suffix == ".safetensors":
        raise UserError(f"--out {out} is named as a file; give --format single-file, kohya or peft, or a folder")
    trained = _find_trained(load_backend(package), options) if options.run_dir else None
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
        if trained and trained.config.train.zero_terminal_snr:
            log.info("a checkpoint file cannot say it: %s", lora_file.ZERO_SNR)
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


def _find_trained(backend_class: type[Backend], options: argparse.Namespace) -> Trained:
    """The checkpoint that --step or --best of --run names, or the newest."""
    if not options.best:
        return find_trained(backend_class, options.run_dir, options.step, "fp32")
    step, identity = evaluation.best_checkpoint(options.run_dir)
    trained = find_trained(backend_class, options.run_dir, step, "fp32")
    if trained.checkpoints.identity(step) != identity:
        raise UserError(
            f"--best: step {step} of {options.run_dir} was trained anew since it was evaluated; evaluate it again"
        )
    scored = evaluation.read(Path(options.run_dir))
    steps = trained.checkpoints.steps()
    if left := [at for at in steps if scored and not scored.find(at, trained.checkpoints.identity(at))]:
        named = f"steps {', '.join(map(str, left))} have" if len(left) > 1 else f"step {left[0]} has"
        log.warning("--best: %s no score; evaluate again", named)
    log.info("the best checkpoint is that of step %d", step)
    return trained


def _open_exported(options: argparse.Namespace) -> PipelineDir:
    folder = Path(options.model)
    if (folder / "config.json").is_file() and not (folder / "model_index.json").is_file():
        raise UserError(f"--from {folder} is a run folder; give it with --run, or its {folder / 'pipeline'}")
    return open_model(options)


def convert(package: str, options: argparse.Namespace) -> None:
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
        trained = _find_trained(backend_class, options)
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


def merge(package: str, options: argparse.Namespace) -> None:
    paths, out = [Path(path) for path in options.lora], Path(options.out)
    weights = lora_merge.weights_of(paths, options.weight)
    loras = [lora_file.read_lora(path) for path in paths]
    pipeline = open_model(options)
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

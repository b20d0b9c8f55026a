"""The command `evaluate`: find the best checkpoint of a run, or compare the pictures of two folders."""

import argparse
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from booth.commands.options import path
from booth.common.errors import UserError
from booth.config.sources import DATASET, MODEL
from booth.config.validation import check_backend
from booth.data import images
from booth.data.image_file import load_image
from booth.data.image_folder import find_images
from booth.data.inputs import Inputs, check_inputs
from booth.diffusion.backend import load_backend
from booth.evaluate import results, scores
from booth.evaluate.judges import Judge, judge_of
from booth.evaluate.photographer import Photographer, Shots, write_sheet
from booth.evaluate.prompts import evaluation_prompts, templates_of
from booth.evaluate.results import Evaluation, Scored
from booth.report import write
from booth.train.run_record import pinned_revision
from booth.train.trained_run import Trained, find_trained

log = logging.getLogger("booth")

LEARNED = 0.1  # a best checkpoint with a smaller subject share gets a warning


def add_parser(commands: Any, package: str) -> None:
    parser = commands.add_parser("evaluate", help="find the best checkpoint: a score for each, and why")
    judged = parser.add_mutually_exclusive_group(required=True)
    judged.add_argument("--run", dest="run_dir", type=path, help="a run folder; all its checkpoints are evaluated")
    judged.add_argument("--pictures", type=path, help="a folder of pictures to compare with --real")
    parser.add_argument("--real", type=path, help="folder with pictures of the subject; default: the photos of --run")
    parser.add_argument(
        "--dino", type=path, default="", help="folder or cached hub id of DINO weights, for the subject"
    )
    parser.add_argument(
        "--clip", type=path, default="", help="folder or cached hub id of CLIP weights, for prompts (and the subject)"
    )
    parser.add_argument("--prompt", default="", help="a prompt that shows the subject; default: the run's")
    parser.add_argument("--class-prompt", default="", help="a prompt that shows the class; default: the run's")
    parser.add_argument(
        "--settings", type=path, default="auto",
        help="prompts of the subject in settings: objects or live (DreamBench's), world, or a file, one a line with {}",
    )  # fmt: skip
    for option, least, default, what in (
        ("--instance-images", 1, 8, "pictures of the instance prompt"),
        ("--setting-images", 1, 1, "pictures of each setting"),
        ("--class-images", 2, 16, "pictures of the class prompt"),
        ("--batch-size", 1, 0, "images sampled at once; default: as for previews"),
    ):
        parser.add_argument(option, type=_at_least(least), default=default, metavar="N", help=what)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="compute type")
    parser.set_defaults(run=run)


def _at_least(least: int) -> Callable[[str], int]:
    """Return an argparse type that reads a whole number and refuses numbers smaller than `least`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} must be a whole number, at least {least}")
        return int(text)

    return read


def run(package: str, options: argparse.Namespace) -> None:
    """Compare two folders if --pictures is given; otherwise evaluate the checkpoints of --run."""
    if options.pictures:
        _compare_folders(package, options)
    else:
        _evaluate_run(package, options)


def _compare_folders(package: str, options: argparse.Namespace) -> None:
    """Print how similar --pictures are to the real ones of --real, and how similar the real ones are to each other.

    Raise UserError if an option is missing or a folder cannot be read.
    """
    if not options.real:
        raise UserError("--real is missing; give the folder of the pictures that --pictures are compared with")
    if options.prompt and not options.clip:
        raise UserError("--prompt needs --clip, which compares pictures with it; give --clip, or leave --prompt out")
    generated, real = (_read_folder(folder, name) for folder, name in
                       ((options.pictures, "--pictures"), (options.real, "--real")))  # fmt: skip
    judge = judge_of(package, options.dino, options.clip)
    seen, photos = judge.look(generated), judge.look(real)
    lines: dict[str, scores.Measures] = {"pictures": {}, "real": {}}
    for name, vectors in photos.identity.items():
        lines["pictures"][name] = scores.fidelity(seen.identity[name], vectors)
        lines["real"][name] = scores.likeness(vectors)
    if options.prompt and (text := judge.read([options.prompt])) is not None:
        for line, looks in (("pictures", seen), ("real", photos)):
            assert looks.content is not None
            lines[line][judge.prompt_measure] = scores.fidelity(looks.content, text)
    for line, looks in (("pictures", seen), ("real", photos)):
        lines[line]["diversity"] = scores.diversity(looks.deciding)
    print(results.markdown_table("", list(lines["pictures"]), lines))


def _read_folder(folder: str, option: str) -> list[np.ndarray]:
    paths = find_images(folder, option)
    if not paths:
        raise UserError(f"{option} {folder} contains no pictures; give a folder with pictures")
    return [np.asarray(load_image(example.path)) for example in images.read_examples(paths, "", "instance", option)]


def _evaluate_run(package: str, options: argparse.Namespace) -> None:
    run_dir, backend_class = Path(options.run_dir), load_backend(package)
    trained = find_trained(backend_class, options.run_dir, None, options.precision)
    config = trained.config
    if config.concepts:
        raise UserError(f"--run {run_dir} has several concepts; evaluate needs a run of one subject")
    if options.real:
        config.instance.images, config.instance.captions, config.instance.masks = options.real, "none", "none"
    instance, of_class = _prompts(options, config)
    try:
        check_backend(config, backend_class.name)
        backend_class.check(config)
    except UserError as error:
        raise UserError(str(error).replace("train.precision=", "--precision ")) from error
    settings = "world" if options.settings == "auto" and not (options.dino or options.clip) else options.settings
    prompts = evaluation_prompts(instance, of_class, templates_of(settings, of_class))
    judge = judge_of(package, options.dino, options.clip, config.model.source)
    shots = Shots(prompts, options.instance_images, options.setting_images, options.class_images)
    texts = judge.read(shots.texts)
    inputs = check_inputs(config, *(pinned_revision(run_dir, config, kind) for kind in (MODEL, DATASET)))
    photographer = Photographer(backend_class, trained, inputs, shots, options.batch_size)
    found = _measure(run_dir, trained, inputs, shots, judge, texts, photographer)
    print(found.table())
    _advise(found, judge)
    sheet = write_sheet(run_dir, found, inputs, shots, photographer)
    log.info("written: %s and %s", run_dir / results.FOLDER / results.SCORES, sheet)
    write.refresh(run_dir)


def _prompts(options: argparse.Namespace, config: Any) -> tuple[str, str]:
    """Return (instance prompt, class prompt) of the options or else of the run. Raise UserError if one is missing."""
    instance, of_class = options.prompt or config.instance.prompt, options.class_prompt or config.prior.prompt
    if not instance or "{caption}" in instance:
        raise UserError(
            "--prompt is missing: each photo of this run has its own caption; give a prompt that shows the subject"
        )
    if not of_class:
        raise UserError("--class-prompt is missing: this run has no prior.prompt; give one such as 'a photo of dog'")
    return instance, of_class


def _measure(
    run_dir: Path,
    trained: Trained,
    inputs: Inputs,
    shots: Shots,
    judge: Judge,
    texts: np.ndarray | None,
    photographer: Photographer,
) -> Evaluation:
    """Return the measures of all checkpoints of a run.

    Measures in scores.json that have the same recipe are used again. New ones are written as soon as they are known.
    """
    recipe = {**photographer.recipe, "judge": judge.recipe, "texts": list(shots.prompts.texts),
              "photos": sorted(example.sha256 for example in inputs.instances)}  # fmt: skip
    before = results.read(run_dir)
    found = Evaluation(recipe)
    if before and before.recipe == recipe:
        found = replace(before, checkpoints=[])
    else:
        before = None
    todo = []
    for step in trained.checkpoints.steps():
        trained.checkpoints.find(step)  # raises UserError for a checkpoint of another run
        identity = trained.checkpoints.identity(step)
        if before and (scored := before.find(step, identity)):
            found.checkpoints.append(scored)
        else:
            todo.append((step, identity))
    if todo:
        photos = judge.look([np.asarray(load_image(example.path)) for example in inputs.instances])
        base = shots.by_prompt(judge.look(photographer.take(photographer.files(run_dir, None, ""), None)))
        measure = judge.prompt_measure
        found.photos = scores.of_photos(photos, texts, measure)
        found.base = scores.of_model(base, photos, texts, measure, base)
        for step, identity in todo:
            files = photographer.files(run_dir, step, identity)
            seen = shots.by_prompt(judge.look(photographer.take(files, step)))
            measures = scores.of_model(seen, photos, texts, measure, base)
            subject = next(iter(photos.identity))
            shares = scores.shares(measures, found.base, found.photos, subject, measure)
            found.checkpoints.append(Scored(step, identity, measures, shares))
            found.checkpoints.sort(key=lambda scored: scored.step)
            found.write(run_dir)
    elif before and len(before.checkpoints) != len(found.checkpoints):
        found.write(run_dir)  # without the scores of deleted checkpoints
    return found


def _advise(found: Evaluation, judge: Judge) -> None:
    left_out = [name for name in scores.SHARES if found.checkpoints and name not in found.checkpoints[0].shares]
    if not judge.prompt_measure:
        log.warning("how well pictures follow their prompts is not measured; give --clip to measure it")
    elif "prompt" in left_out:
        log.warning("the base follows prompts no better than the photos do: prompts are left out of the score")
    if "subject" in left_out:
        log.warning("the base's pictures are as near to the photos as the photos are to each other: there is no score")
    elif found.best is None:
        log.warning("no checkpoint has a score above 0: none has learned the subject and also kept the rest")
    for scored in found.checkpoints:
        if scored.step == found.best and (share := scored.shares.get("subject", 1)) < LEARNED:
            log.warning(
                "the best checkpoint has hardly learned the subject (%.3f): train longer, or with a higher rate", share
            )
    if len(found.checkpoints) == 1:
        log.warning("there is only one checkpoint; train with checkpoint.every_steps and a larger checkpoint.keep")

"""The command `sample`: make images of prompts and seeds, or of axes of settings, as PNGs and a grid.

Each PNG records how it was made.
"""

import argparse
import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from booth.commands.options import add_hosts, add_source, check_of_run, join_hosts, open_model, path
from booth.commands.png_text import Recipe, infotext
from booth.commands.sample_options import Asked, read_options
from booth.commands.xy_grid import AXES, MANY
from booth.common.errors import OutOfMemory, UserError
from booth.common.hosts import Hosts, ended_together
from booth.common.progress import progress
from booth.config import values as settings
from booth.config.choices import SOLVERS
from booth.config.validation import check_backend
from booth.data import pictures
from booth.diffusion.backend import Backend, load_backend
from booth.diffusion.sampling import ImageRequest, Sampler
from booth.models import new_tokens
from booth.models.modelspec import native_resolution
from booth.models.pipeline import PipelineDir
from booth.models.tokenizer import load_tokenizer
from booth.train.trained_run import find_trained

log = logging.getLogger("booth")


def add_parser(commands: Any, package: str) -> None:
    parser = commands.add_parser("sample", help="make PNGs and a grid of prompts")
    add_source(parser)
    parser.add_argument("--prompt", action="append", default=[], help="what to show; may be given several times")
    parser.add_argument("--prompts", type=path, metavar="FILE", help="file with one prompt a line; # begins a comment")
    parser.add_argument("--negative-prompt", help="what the images should not show")
    parser.add_argument("--solver", choices=SOLVERS, help="how the noise is removed; default: dpm++")
    parser.add_argument("--steps", type=int, help="denoising steps; default: 25")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance scale; default: 7.5, 1 turns it off")
    parser.add_argument("--seeds", type=int, nargs="+", help="one image for every prompt and seed; default: 0")
    parser.add_argument("--size", help="512 or WIDTHxHEIGHT; default: the size the model was made for")
    parser.add_argument(
        "--batch-size", default="4", help="images sampled at once; torchbooth: or auto, as memory allows"
    )
    for option, where in (("--x", "across"), ("--y", "down")):
        parser.add_argument(
            option, action="append", default=[], metavar="NAME=VALUE,...",
            help=f"make a grid, xy.png, with these values {where}: {', '.join(AXES)} (separate prompts by |)",
        )  # fmt: skip
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="compute type")
    parser.add_argument("--lora-weight", type=float, help="weight of the LoRA of --run; default: 1")
    parser.add_argument("--out", required=True, type=path, help="folder for the images")
    add_hosts(parser, package)
    parser.set_defaults(run=run)


def run(package: str, options: argparse.Namespace) -> None:
    """Make the images of a model or of a run's checkpoint and write them to --out. Raise UserError if that fails."""
    asked = read_options(options)
    backend_class = load_backend(package)
    check_of_run(options, "--model")
    join_hosts(package, options)
    hosts = backend_class.hosts()
    with ended_together(hosts):
        _sample(backend_class, hosts, options, asked)


def _sample(backend_class: type[Backend], hosts: Hosts, options: argparse.Namespace, asked: Asked) -> None:
    """Open the model on every process, and make the images together."""
    trained = find_trained(backend_class, options.run_dir, options.step, options.precision) if options.run_dir else None
    pipeline = trained.pipeline if trained else open_model(options)
    if options.verify:
        pipeline.verify()
    _write_images(backend_class, hosts, options, asked, pipeline, trained)


def _write_images(
    backend_class: type[Backend],
    hosts: Hosts,
    options: argparse.Namespace,
    asked: Asked,
    pipeline: PipelineDir,
    trained: Any,
) -> None:
    """Make and write the images; `trained` is the checkpoint of --run, or None. Raise UserError for wrong options.

    Of several `hosts` the first writes.
    """
    size = _size(options.size, pipeline)
    recipes = asked.recipes
    if trained:
        recipes = [recipe if recipe.checkpoint is not None else replace(recipe, checkpoint=trained.step)
                   for recipe in recipes]  # fmt: skip
        for step in dict.fromkeys(recipe.checkpoint for recipe in recipes):
            trained.checkpoints.find(step)
    weighted = any(recipe.lora_weight is not None for recipe in recipes)
    if weighted and (not trained or trained.config.adapter.kind != "lora"):
        raise UserError("a LoRA weight needs --run with the folder of a LoRA run; leave it out, or use merge --weight")
    tokenizer = load_tokenizer(pipeline, new_tokens.new_tokens(trained.config) if trained else ())
    for kind in dict.fromkeys(recipe.settings for recipe in recipes):
        Sampler(pipeline, tokenizer, size, *kind, batch_size=1).check()
    if asked.by_memory and hosts.count > 1:
        raise UserError("--batch-size auto must be a number where several processes make the images together")
    if asked.by_memory and not backend_class.survives_out_of_memory:
        raise UserError(
            f"--batch-size auto must be a number: {backend_class.name}booth cannot continue once memory has run out"
        )
    config = trained.config if trained else _inference_config(options.precision)
    try:
        check_backend(config, backend_class.name)
        backend_class.check(config)
    except UserError as error:
        raise UserError(str(error).replace("train.precision=", "--precision ")) from error
    out = Path(options.out)
    if writes := hosts.index == 0:
        out.mkdir(parents=True, exist_ok=True)  # an error here should come before sampling, not after
    source = _Source(backend_class, config, pipeline, trained)
    made = _advised(_images(source, tokenizer, size, recipes, asked))
    images: dict[int, np.ndarray] = {}
    added = new_tokens.new_tokens(config)
    for index, image in progress(made, desc="sampling", total=len(recipes), unit="image"):
        if not writes:
            continue
        recipe = recipes[index]
        spoken = replace(  # with the names that WebUIs use for new tokens
            recipe, prompt=new_tokens.spoken(recipe.prompt, added),
            negative_prompt=new_tokens.spoken(recipe.negative_prompt, added),
        )  # fmt: skip
        text = infotext(spoken, size, source.title(options, recipe), source.hash)
        pictures.save(Image.fromarray(image), out / _file_name(index, recipe), text)
        if asked.is_xy or len(recipes) <= MANY:
            images[index] = image
    if writes:
        log.info("%d images%s written to %s", len(recipes), _write_grid(asked, recipes, images, out), out)


def _write_grid(asked: Asked, recipes: Sequence[Recipe], images: dict[int, np.ndarray], out: Path) -> str:
    """Write all images into one picture, unless there are too many to look at.

    Return the end of the sentence about what was written: " and grid.png", " and xy.png" or "".
    """
    if not images:
        return ""
    in_order = [images[index] for index in range(len(recipes))]
    if asked.is_xy:
        labels = [axis.labels if axis else [""] for axis in (asked.across, asked.down)]
        pictures.save(pictures.xy_grid(in_order, *labels), out / "xy.png")
        return " and xy.png"
    captions = [f"{recipe.prompt} (seed {recipe.seed})" for recipe in recipes]
    pictures.save(pictures.grid(in_order, captions, asked.columns), out / "grid.png")
    return " and grid.png"


def _file_name(index: int, recipe: Recipe) -> str:
    name = re.sub(r"\W+", "-", recipe.prompt).strip("-")[:40]
    return "-".join(filter(None, (f"{index:03d}", name, f"seed{recipe.seed}"))) + ".png"


class _Source:
    """The networks that make the images. They are loaded once; for another checkpoint only its weights are read."""

    def __init__(self, backend_class: type[Backend], config: Any, pipeline: PipelineDir, trained: Any) -> None:
        self.pipeline, self.trained = pipeline, trained
        if trained:
            self.backend, self._state = trained.restore(backend_class)
            self._step = trained.step
        else:
            self.backend = backend_class(config)
            self._models = self.backend.load(pipeline)
        self.hash = "" if trained else _model_hash(pipeline)  # a run's checkpoint has no hash that other programs know

    def models(self, step: int | None, lora_weight: float | None) -> Any:
        if not self.trained:
            return self._models
        if step != self._step:
            self._state, self._step = self.trained.checkpoints.restore(self.backend, self._state, step), step
        state = self._state
        if self.trained.config.adapter.kind == "lora":
            state = self.backend.with_lora_weight(state, 1.0 if lora_weight is None else lora_weight)
        return self.backend.models(state)

    def title(self, options: argparse.Namespace, recipe: Recipe) -> str:
        """Return the model's name: the run and the step, or the last part of a hub id or of a path, without suffix."""
        if self.trained:
            return f"{Path(options.run_dir).resolve().name}-{recipe.checkpoint:06d}"
        path = Path(options.model)
        return path.resolve().parent.name if path.name == "pipeline" else path.name.removesuffix(".safetensors")


def _model_hash(pipeline: PipelineDir) -> str:
    """Return the first 10 digits of the sha256 of a single file, as WebUIs do, or of the UNet's weights in a folder."""
    if Path(pipeline.where).is_file():
        with Path(pipeline.where).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:10]
    return pipeline.weights_hash("unet")[:10]


def _images(
    source: _Source, tokenizer: Any, size: tuple[int, int], recipes: Sequence[Recipe], asked: Asked
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index of the recipe, uint8 [h, w, 3]) for all recipes.

    Recipes with the same model and settings are sampled together, in batches of one size.
    """
    groups: dict[tuple[int | None, float | None, tuple[str, int, float]], list[int]] = {}
    for index, recipe in enumerate(recipes):
        groups.setdefault((recipe.checkpoint, recipe.lora_weight, recipe.settings), []).append(index)
    checkpoints = list(dict.fromkeys(step for step, *_ in groups))
    at_once = min(asked.batch_size, max(map(len, groups.values())))
    for step, weight, kind in sorted(groups, key=lambda group: checkpoints.index(group[0])):
        indices = groups[step, weight, kind]
        requests = [
            ImageRequest(recipes[index].prompt, recipes[index].seed, recipes[index].negative_prompt)
            for index in indices
        ]
        left = frozenset(range(len(requests)))
        while left:
            sampler = Sampler(source.pipeline, tokenizer, size, *kind, batch_size=at_once)
            try:
                for place, image in sampler.images(source.backend, source.models(step, weight), requests, left):
                    left -= {place}
                    yield indices[place], image
            except OutOfMemory:
                if not asked.by_memory or at_once == 1:
                    raise
                at_once //= 2
                log.info("memory ran out: from here on %d images at once (this changes only their last bits)", at_once)


def _advised(images: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Yield the images; if memory runs out, raise UserError that names the options to lower."""
    try:
        yield from images
    except OutOfMemory as error:
        raise UserError(f"{str(error).partition(';')[0]}; lower --batch-size or --size") from error


def _inference_config(precision: str) -> Any:
    config = settings.default_config()
    config.train.precision = precision
    return config


def _size(text: str | None, pipeline: PipelineDir) -> tuple[int, int]:
    if text is None:
        side = native_resolution({name: pipeline.component_config(name) for name in ("unet", "vae")})
        if side is None:
            raise UserError(
                f"--size is missing: {pipeline.path}/unet/config.json names no sample_size; give one such as 512"
            )
        return side, side
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match:
        raise UserError(f"--size {text!r} must be a number such as 512, or WIDTHxHEIGHT such as 768x512")
    return int(match[1]), int(match[2] or match[1])

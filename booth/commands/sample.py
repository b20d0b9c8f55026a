"""The `sample` command: prompts and seeds, or axes of settings, -> PNGs that tell how they were made, and a grid."""

import argparse
import hashlib
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from booth.commands.png_text import Recipe, infotext
from booth.commands.xy_grid import MANY, Axis, read_axes, varied
from booth.common.errors import OutOfMemory, UserError
from booth.common.progress import progress
from booth.config import values as settings
from booth.config.fields import SEED
from booth.config.validation import check_backend
from booth.data import pictures
from booth.diffusion.backend import Backend
from booth.diffusion.sampling import ImageRequest, Sampler
from booth.models import new_tokens
from booth.models.pipeline import PipelineDir
from booth.models.tokenizer import load_tokenizer

log = logging.getLogger("booth")

_DEFAULTS = {
    "negative_prompt": "",
    "solver": "dpm++",
    "steps": 25,
    "guidance": 7.5,
    "seeds": [0],
}  # where None is given
_AUTO_BATCH = 8  # images at once that `--batch-size auto` begins with


@dataclass(frozen=True)
class Asked:
    """What the options ask for, in the order of the grid."""

    recipes: list[Recipe]
    across: Axis | None
    down: Axis | None
    columns: int
    batch_size: int
    by_memory: bool  # go on with fewer at once should memory run out

    @property
    def is_xy(self) -> bool:
        return bool(self.across or self.down)


def read_options(options: argparse.Namespace) -> Asked:
    """UserError for options that no model could make images with."""
    axes = read_axes(options.x, options.y)
    _check_not_both(options, axes)
    for name, value in _DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for seed in options.seeds:
        if not SEED.holds(seed):
            raise UserError(f"--seeds {seed} must be {SEED.text}")
    if not 0 <= options.guidance < math.inf:
        raise UserError(f"--guidance {options.guidance} must be a finite number, at least 0")
    weight = options.lora_weight
    if weight is not None and not math.isfinite(weight):
        raise UserError(f"--lora-weight {weight} must be a finite number")
    batch = {"batch_size": _batch_size(options.batch_size), "by_memory": options.batch_size == "auto"}
    across, down = (axes.pop(0) if given else None for given in (options.x, options.y))
    prompts, seeds, names = _prompts(options), options.seeds, [axis.name for axis in (across, down) if axis]
    if not prompts and "prompt" not in names:
        raise UserError("the following arguments are required: --prompt (or --prompts FILE)")
    if "checkpoint" in names and (options.step is not None or not options.run_dir):
        raise UserError("the axis checkpoint names checkpoints of --run; give --run, and no --step")
    recipes = [
        Recipe(
            prompt, options.negative_prompt, seed, options.solver, options.steps, options.guidance, options.step, weight
        )
        for prompt in prompts or [""]
        for seed in seeds
    ]  # fmt: skip
    if not names:
        return Asked(recipes, None, None, len(seeds), **batch)
    for name, option, given in (("prompt", "--prompt", prompts), ("seed", "--seeds", seeds)):
        if name not in names and len(given) > 1:
            raise UserError(f"a grid of --x and --y has one {name}: give one with {option}, or make {name} an axis")
    grid = varied(recipes[0], across, down)
    if len(grid) > MANY:
        log.warning("--x and --y ask for %d images", len(grid))
    return Asked(grid, across, down, len(across.values) if across else 1, **batch)


def _check_not_both(options: argparse.Namespace, axes: Sequence[Axis]) -> None:
    """UserError for an option beside an axis that changes the same."""
    by_axis = {"seed": ["seeds"], "prompt": ["prompt", "prompts"], "checkpoint": []}
    for axis in axes:
        for name in by_axis.get(axis.name, [axis.name]):
            if getattr(options, name) not in (None, []):
                option = f"--{name.replace('_', '-')}"
                raise UserError(
                    f"{option} is given beside the axis {axis.name}, which has its values; give one of them"
                )


def _batch_size(text: str) -> int:
    if text == "auto":
        return _AUTO_BATCH
    if not re.fullmatch(r"\d+", text) or int(text) < 1:
        raise UserError(f"--batch-size {text} must be at least 1, or auto")
    return int(text)


def _prompts(options: argparse.Namespace) -> list[str]:
    """Those of --prompt, then those of the file."""
    prompts = list(options.prompt)
    if options.prompts:
        try:
            lines = Path(options.prompts).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"--prompts {options.prompts} is not all UTF-8; write it anew") from error
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise UserError(f"--prompts {options.prompts} holds no prompt; write one a line")
        prompts += found
    return prompts


def run(
    backend_class: type[Backend], options: argparse.Namespace, asked: Asked, pipeline: PipelineDir, trained: Any
) -> None:
    """Makes and writes the images; `trained` is the run's checkpoint that --run names, or None. Raises UserError."""
    size = _size(options.size, pipeline)
    recipes = asked.recipes
    if trained:
        recipes = [recipe if recipe.checkpoint is not None else replace(recipe, checkpoint=trained.step)
                   for recipe in recipes]  # fmt: skip
        for step in dict.fromkeys(recipe.checkpoint for recipe in recipes):
            trained.checkpoints.find(step)
    weighted = any(recipe.lora_weight is not None for recipe in recipes)
    if weighted and (not trained or trained.config.adapter.kind != "lora"):
        raise UserError("a LoRA weight is for --run with the folder of a LoRA run; leave it out, or use merge --weight")
    tokenizer = load_tokenizer(pipeline, new_tokens.new_tokens(trained.config) if trained else ())
    for kind in dict.fromkeys(recipe.settings for recipe in recipes):
        Sampler(pipeline, tokenizer, size, *kind, batch_size=1).check()
    if asked.by_memory and not backend_class.survives_out_of_memory:
        raise UserError(
            f"--batch-size auto must be a number: {backend_class.name}booth cannot go on once memory has run out"
        )
    config = trained.config if trained else _inference_config(options.precision)
    try:
        check_backend(config, backend_class.name)
        backend_class.check(config)
    except UserError as error:
        raise UserError(str(error).replace("train.precision=", "--precision ")) from error
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)  # if it cannot be made, then better now than after sampling
    source = _Source(backend_class, config, pipeline, trained)
    made = _advised(_images(source, tokenizer, size, recipes, asked))
    images: dict[int, np.ndarray] = {}
    added = new_tokens.new_tokens(config)
    for index, image in progress(made, desc="sampling", total=len(recipes), unit="image"):
        recipe = recipes[index]
        spoken = replace(  # as WebUIs call new tokens
            recipe, prompt=new_tokens.spoken(recipe.prompt, added),
            negative_prompt=new_tokens.spoken(recipe.negative_prompt, added),
        )  # fmt: skip
        text = infotext(spoken, size, source.title(options, recipe), source.hash)
        pictures.save(Image.fromarray(image), out / _file_name(index, recipe), text)
        if asked.is_xy or len(recipes) <= MANY:
            images[index] = image
    log.info("%d images%s written to %s", len(recipes), _write_grid(asked, recipes, images, out), out)


def _write_grid(asked: Asked, recipes: Sequence[Recipe], images: dict[int, np.ndarray], out: Path) -> str:
    """All in one picture; how it is called in a sentence. None of too many to look at."""
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
    """The networks that images are made of, of whichever checkpoint; loaded once."""

    def __init__(self, backend_class: type[Backend], config: Any, pipeline: PipelineDir, trained: Any) -> None:
        self.pipeline, self.trained = pipeline, trained
        if trained:
            self.backend, self._state = trained.restore(backend_class)
            self._step = trained.step
        else:
            self.backend = backend_class(config)
            self._models = self.backend.load(pipeline)
        self.hash = "" if trained else _model_hash(pipeline)  # no other program has a run's checkpoint

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
        """What the model is called: the run and the step, or the last part of a hub id or of a path without suffix."""
        if self.trained:
            return f"{Path(options.run_dir).resolve().name}-{recipe.checkpoint:06d}"
        path = Path(options.model)
        return path.resolve().parent.name if path.name == "pipeline" else path.name.removesuffix(".safetensors")


def _model_hash(pipeline: PipelineDir) -> str:
    """As WebUIs have it, the beginning of a single file's sha256; of a folder, that of the UNet's weights."""
    if Path(pipeline.where).is_file():
        with Path(pipeline.where).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:10]
    return pipeline.weights_hash("unet")[:10]


def _images(
    source: _Source, tokenizer: Any, size: tuple[int, int], recipes: Sequence[Recipe], asked: Asked
) -> Iterator[tuple[int, np.ndarray]]:
    """(index, uint8 [h, w, 3]) of all recipes: those of one model and the same settings in batches of one size."""
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
                log.info("memory ran out: from here on %d images at once (only their last bits depend on it)", at_once)


def _advised(images: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """The same; a UserError for want of memory says what this command can change."""
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

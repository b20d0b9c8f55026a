"""The pictures that an evaluation makes with each model, and the one picture that shows them side by side."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from booth.common.errors import OutOfMemory, UserError
from booth.common.progress import progress
from booth.data import pictures
from booth.data.image_file import load_image
from booth.data.inputs import Inputs
from booth.diffusion.backend import Backend
from booth.diffusion.sampling import ImageRequest
from booth.evaluate import results
from booth.evaluate.prompts import EvaluationPrompts
from booth.evaluate.results import Evaluation
from booth.evaluate.scores import Seen, SeenModel
from booth.train.trained_run import Trained

FIRST_SEED = 1000  # not a seed of previews and class images
_SHOWN = (2, 4, 2)  # how many are shown in a row: of the instance prompt, of settings, of the class prompt


@dataclass(frozen=True)
class Shots:
    """The pictures that are made with each model, each with its own seed: of the instance prompt, of the subject in
    settings, of the class prompt."""

    prompts: EvaluationPrompts
    instance: int
    setting: int  # the number for each setting
    of_class: int

    @property
    def requests(self) -> list[ImageRequest]:
        texts = [self.prompts.instance] * self.instance
        texts += [setting for setting in self.prompts.settings for _ in range(self.setting)]
        texts += [self.prompts.of_class] * self.of_class
        return [ImageRequest(text, FIRST_SEED + place) for place, text in enumerate(texts)]

    @property
    def texts(self) -> list[str]:
        """The text that each picture in a setting is compared with."""
        return [text for text in self.prompts.texts for _ in range(self.setting)]

    def by_prompt(self, seen: Seen) -> SeenModel:
        """Return what the judge sees in the pictures, by kind of prompt."""
        end = len(self.requests) - self.of_class
        return SeenModel(seen[: self.instance], seen[self.instance : end], seen[end:])

    @property
    def shown(self) -> list[int]:
        """The indices of the pictures that the user is shown: a few of each kind, of as many settings as possible."""
        instance, settings, of_class = _SHOWN
        end = len(self.requests) - self.of_class
        step = max(1, (end - self.instance) // settings)
        first = [*range(min(instance, self.instance)), *range(self.instance, end, step)]
        return [*first[: instance + settings], *range(end, end + min(of_class, self.of_class))]


class Photographer:
    """Makes the pictures of one model after another, the base first; existing pictures are not made again."""

    def __init__(
        self, backend_class: type[Backend], trained: Trained, inputs: Inputs, shots: Shots, batch: int
    ) -> None:
        self._backend_class, self._trained, self._requests = backend_class, trained, shots.requests
        self._samplers = {tuned: inputs.sampler(trained.config, "samples", tuned=tuned) for tuned in (False, True)}
        if batch:
            self._samplers = {tuned: replace(sampler, batch_size=batch) for tuned, sampler in self._samplers.items()}
        for sampler in self._samplers.values():
            sampler.check()
        self._pipeline = inputs.pipeline
        self._models: Any = None  # the base's networks, until a checkpoint takes them over
        self._state: Any = None

    @property
    def recipe(self) -> dict[str, Any]:
        sampler = self._samplers[True]
        return {
            "pictures": [[request.prompt, request.seed] for request in self._requests],
            "solver": sampler.solver,
            "inference_steps": sampler.steps,
            "guidance": sampler.guidance,
            "size": list(sampler.size),
            "precision": self._trained.config.train.precision,
        }

    def files(self, run_dir: Path, step: int | None, identity: str) -> list[Path]:
        """Return the picture files of a checkpoint, or of the base, in a folder whose name distinguishes recipes and
        checkpoints."""
        key = hashlib.sha256(json.dumps([self.recipe, identity]).encode()).hexdigest()[:12]
        name = "base" if step is None else f"step-{step:06d}"
        folder = run_dir / results.FOLDER / results.PICTURES / f"{name}-{key}"
        return [folder / f"{index:03d}.png" for index in range(len(self._requests))]

    def take(self, files: Sequence[Path], step: int | None) -> list[np.ndarray]:
        """Return the pictures, uint8 [h, w, 3] each. Raise UserError if the checkpoint is damaged, if a picture is not
        finite, or if memory runs out."""
        if missing := {index for index, file in enumerate(files) if not file.is_file()}:
            name = "base" if step is None else f"step {step}"
            models = self._base() if step is None else self._restored(step)
            sampler = self._samplers[step is not None]
            try:
                made = sampler.images(self._backend, models, self._requests, missing)
                for index, image in progress(made, desc=name, total=len(missing), unit="image"):
                    pictures.save(Image.fromarray(image), files[index])
            except OutOfMemory as error:
                raise UserError(f"{str(error).partition(';')[0]}; lower --batch-size") from error
        return [np.asarray(load_image(file)) for file in files]

    @cached_property
    def _backend(self) -> Backend:
        return self._backend_class(self._trained.config)

    def _base(self) -> Any:
        assert self._state is None
        self._models = self._backend.load(self._pipeline)
        return self._models

    def _restored(self, step: int) -> Any:
        if self._state is None:
            self._state = self._backend.init(self._models or self._base(), training=False)
            self._models = None
        self._state = self._trained.checkpoints.restore(self._backend, self._state, step)
        return self._backend.models(self._state)


def write_sheet(run_dir: Path, found: Evaluation, inputs: Inputs, shots: Shots, photographer: Photographer) -> Path:
    """Write scores.png: the photos, then a row of pictures at the same seeds for the base and for each checkpoint."""
    size = tuple(photographer.recipe["size"])
    photos = [ImageOps.fit(load_image(example.path), size) for example in inputs.instances[: sum(_SHOWN)]]
    rows: list[tuple[str, list[np.ndarray]]] = [("photos", [np.asarray(photo) for photo in photos])]
    models: list[tuple[str, list[Path]]] = [("base", photographer.files(run_dir, None, ""))]
    for scored in found.checkpoints:
        numbers = ", ".join(f"{name} {value:.2f}" for name, value in scored.shares.items())
        mark = "BEST: " if scored.step == found.best else ""
        models.append(
            (f"{mark}step {scored.step}: {numbers}", photographer.files(run_dir, scored.step, scored.identity))
        )
    for label, files in models:
        if all(files[place].is_file() for place in shots.shown):  # the user may delete pictures that are scored
            rows.append((label, [np.asarray(load_image(files[place])) for place in shots.shown]))
    path = run_dir / results.FOLDER / results.SHEET
    pictures.save(pictures.labelled_rows(rows), path)
    return path

"""Pictures of what a run has learned: previews while it trains, and at the end a picture of before and after.

All are made by the section `samples` of the config, at the same seeds each time, so that they can be compared one by
one.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from booth.common.hosts import from_first
from booth.common.progress import progress
from booth.data import pictures
from booth.data.image_file import load_image
from booth.data.inputs import Inputs
from booth.data.views import View, pixels, views
from booth.diffusion.backend import Backend
from booth.diffusion.sampling import ImageRequest, to_uint8
from booth.train.run_folder import RunDir

log = logging.getLogger("booth")

MOST_INSTANCES = 5  # the largest number of pictures in the top row of before and after


@dataclass(frozen=True)
class Previews:
    """The pictures that one run makes; each method takes the models to sample.

    Of several processes all sample, and one writes.
    """

    config: Any
    inputs: Inputs
    backend: Backend
    run: RunDir

    @property
    def prompts(self) -> tuple[str, ...]:
        config = self.config
        if config.samples.prompts:
            return tuple(config.samples.prompts)
        firsts = {example.concept: example.caption for example in reversed(self.inputs.instances)}
        of_classes = [concept.config.prior.prompt for concept in self.inputs.concepts]
        both = zip([firsts[place] for place in sorted(firsts)], of_classes, strict=True)
        return tuple(dict.fromkeys(prompt for prompts in both for prompt in prompts if prompt))

    @property
    def requests(self) -> list[ImageRequest]:
        """The requests: all seeds of the first prompt, then of the next."""
        seeds = range(self.config.samples.images_per_prompt)
        return [ImageRequest(prompt, seed) for prompt in self.prompts for seed in seeds]

    def write_grid(self, models: Any, done: int) -> None:
        """Write RUN/samples/step-000100.png of the models after `done` updates, with a row for each prompt."""
        images = [image for _, image in self._sample(models, "preview", tuned=True)]
        captions = [f"{request.prompt} (seed {request.seed})" for request in self.requests]
        columns = self.config.samples.images_per_prompt
        if self.run.is_written_here:
            pictures.save(pictures.grid(images, captions, columns), self.grid_file(done))

    def grid_file(self, done: int) -> Path:
        return self.run.samples / f"step-{done:06d}.png"

    def base_images(self, models: Any) -> list[np.ndarray]:
        """Return the pictures of the untouched base for all requests, uint8 [h, w, 3] each.

        They are kept in RUN/samples/base for a resumed run; only missing ones are made.
        """
        files, hosts = [self._base_file(request) for request in self.requests], self.run.hosts
        missing = from_first(hosts, lambda: [index for index, file in enumerate(files) if not file.exists()])
        if missing:
            for index, image in self._sample(models, "base pictures", set(missing)):
                if self.run.is_written_here:
                    pictures.save(Image.fromarray(image), files[index])
        return [np.asarray(load_image(file)) for file in files] if self.run.is_written_here else []

    def write_before_after(self, models: Any, base: Sequence[np.ndarray], instances: Sequence[Sequence[View]]) -> None:
        """Write RUN/samples/before_after.png: the instance pictures as they are trained on (the first view of each),
        then for each prompt a row of the base's pictures and a row of these models' pictures at the same seeds.

        It is made after the last update and before the export. If a run was finished before this picture was asked for,
        nothing is left to do and it makes none; with more `train.steps` it does.
        """
        tuned = [image for _, image in self._sample(models, "tuned pictures", tuned=True)]
        if not self.run.is_written_here:
            return
        shown = [self._square(seen[0]) for seen in instances[:MOST_INSTANCES]]
        rows = [("instance pictures", [to_uint8(pixels(view)) for view in shown])]
        count = self.config.samples.images_per_prompt
        for number, prompt in enumerate(self.prompts):
            row = slice(number * count, (number + 1) * count)
            rows += [(f"base: {prompt}", list(base[row])), (f"tuned: {prompt}", tuned[row])]
        path = self.run.samples / "before_after.png"
        pictures.save(pictures.labelled_rows(rows), path)
        log.info("before and after written to %s", path)

    def _square(self, view: View) -> View:
        """Return the view if it has the size of the previews, else the middle of its image in that size."""
        square = (self.config.data.resolution, self.config.data.resolution)
        return view if view.size == square else views(view.example, square, "center", 1, flip=False, seed=0)[0]

    def _sample(
        self, models: Any, description: str, wanted: Set[int] | None = None, *, tuned: bool = False
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index, uint8 [h, w, 3]) of the wanted requests (default: all), with a progress bar."""
        requests = self.requests
        sampler = self.inputs.sampler(self.config, "samples", tuned=tuned)
        made = sampler.images(self.backend, models, requests, wanted)
        total = len(requests if wanted is None else wanted)
        yield from progress(made, desc=description, total=total, unit="image", leave=False)

    def _base_file(self, request: ImageRequest) -> Path:
        """Return the file of a base picture. Its name depends on everything that changes the picture and that a resumed
        run may change."""
        settings = self.config.samples
        recipe = [request.prompt, request.seed, settings.solver, settings.inference_steps, settings.guidance]
        key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]
        return self.run.base_samples / f"{key}.png"

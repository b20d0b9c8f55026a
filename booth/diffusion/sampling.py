"""Prompts and seeds -> images, in full batches of one size, on either backend.

Image i always has slot i % batch_size of a full batch (copies fill the last batch), even if some images exist already.
So a result does not depend on which images existed, and nothing is compiled twice.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from booth.common import randomness
from booth.common.errors import UserError
from booth.diffusion.backend import Backend
from booth.diffusion.solvers import SamplingTable, as_in_pipeline, needs_noise, solver_table
from booth.models.pipeline import PipelineDir
from booth.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class ImageRequest:
    """One image to make; its noise depends only on the seed and the size."""

    prompt: str
    seed: int
    negative_prompt: str = ""


@dataclass(frozen=True)
class Sampler:
    """How images are made from one pipeline. `size` is (width, height) in pixels."""

    pipeline: PipelineDir
    tokenizer: Tokenizer
    size: tuple[int, int]
    solver: str
    steps: int
    guidance: float
    batch_size: int

    def images(
        self, backend: Backend, models: Any, requests: Sequence[ImageRequest], wanted: Set[int] | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index, uint8 [height, width, 3]) of the wanted requests (default: all), batch by batch.

        Raise UserError for an image that is not finite.
        """
        table = sampling_table(self.pipeline, self.solver, self.steps)
        contexts = self._contexts(backend, models, requests)
        for first in range(0, len(requests), self.batch_size):
            indices = range(first, min(first + self.batch_size, len(requests)))
            if wanted is not None and wanted.isdisjoint(indices):
                continue
            rows = [requests[min(first + slot, len(requests) - 1)] for slot in range(self.batch_size)]
            pixels = backend.sample(
                models,
                np.stack([initial_noise(request.seed, self.latent_shape) for request in rows]),
                np.stack([contexts[request.prompt] for request in rows]),
                np.stack([contexts[request.negative_prompt] for request in rows]),
                table,
                self.guidance,
                self._step_noise(table, rows),
            )
            for index, image in zip(indices, pixels, strict=False):
                if not np.isfinite(image).all():
                    raise UserError(
                        f"the image of {requests[index].prompt!r} is not finite, which would show as black; use bf16 or"
                        " fp32 for train.precision (of the sample command: --precision), or another model"
                    )
                if wanted is None or index in wanted:
                    yield index, to_uint8(image)

    def check(self) -> None:
        """Raise UserError for a size, solver or number of steps that this model cannot be sampled with."""
        sampling_table(self.pipeline, self.solver, self.steps)
        _ = self.latent_shape

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the latents. Raises UserError as the function `latent_shape` does."""
        return latent_shape(self.pipeline, *self.size)

    def _step_noise(self, table: SamplingTable, rows: Sequence[ImageRequest]) -> np.ndarray | None:
        """Return the noise that the steps add, float32 [rows, steps, h, w, c]; None if no step adds any."""
        if not needs_noise(table):
            return None
        return np.stack([step_noise(request.seed, len(table), self.latent_shape) for request in rows])

    def _contexts(self, backend: Backend, models: Any, requests: Sequence[ImageRequest]) -> dict[str, np.ndarray]:
        prompts = sorted({text for request in requests for text in (request.prompt, request.negative_prompt)})
        return {text: context_of(backend, models, self.tokenizer, text) for text in prompts}


def sampling_table(pipeline: PipelineDir, solver: str, steps: int) -> SamplingTable:
    """Return the table of the diffusers scheduler that is made `from_config` of this pipeline's scheduler.

    Raise UserError as `solver_table` does.
    """
    return solver_table(as_in_pipeline(pipeline.component_config("scheduler")), solver, steps)


def context_of(backend: Backend, models: Any, tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """Return a prompt's context, float32 [tokens, width]. Prompts are encoded one at a time: few are ever needed, and
    the result must not depend on other prompts."""
    return backend.encode_prompts(models, tokenizer([prompt]))[0]


def initial_noise(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Return standard normal noise, float32 [h, w, c]."""
    return randomness.normal(seed, "initial noise", 0, 0, shape)


def step_noise(seed: int, steps: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the noise that an ancestral solver adds after each step, standard normal, float32 [steps, h, w, c]."""
    return np.stack([randomness.normal(seed, "step noise", step, 0, shape) for step in range(steps)])


def latent_shape(pipeline: PipelineDir, width: int, height: int) -> tuple[int, int, int]:
    """Return (h, w, c) of the latents of an image.

    Raise UserError for a size that is not a whole number of latents: nothing is cropped.
    """
    vae = pipeline.component_config("vae")
    factor = _halvings(vae)
    if width % factor or height % factor or min(width, height) < factor:
        raise UserError(f"image size {width}x{height} must be a multiple of {factor} in both directions for this model")
    return height // factor, width // factor, vae["latent_channels"]


def side_multiple(pipeline: PipelineDir) -> int:
    """Return the number of pixels that image sides should be a multiple of, so that no level of the UNet halves an odd
    number: 64 for Stable Diffusion."""
    return _halvings(pipeline.component_config("vae")) * _halvings(pipeline.component_config("unet"))


def _halvings(config: Mapping[str, Any]) -> int:
    """Return the factor by which a network's highest level has more rows than its lowest."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Map [-1, 1] to 0 .. 255, rounded as in diffusers' image processor."""
    return np.round((pixels / 2 + 0.5).clip(0, 1) * 255).astype(np.uint8)

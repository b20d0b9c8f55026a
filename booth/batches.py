"""step -> Batch, without state: which images, which views, which noise, which timesteps.

A batch is a pure function of the run's inputs and the step, so a resumed run goes on where it stopped, also in the
middle of an epoch, and batches can be made ahead on a thread.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from booth import randomness
from booth.backend import Batch
from booth.data import View
from booth.schedule import NoiseSchedule

Kind = str  # "instance" or "prior"


@dataclass(frozen=True)
class Batches:
    """What batches are made of.

    views: for each kind, for each image, its views. moments: [2, h, w, c] of each view. weight: of each kind, spread
    over its rows (lambda for the prior). prompts: of all captions, as in Batch; prompt_index: for each kind, for each
    image, the captions it may get. caption_dropout: how often an instance row gets `no_prompt` in place of one.
    """

    views: Mapping[Kind, Sequence[Sequence[View]]]
    moments: Mapping[View, np.ndarray]
    weight: Mapping[Kind, float]
    prompts: np.ndarray
    prompt_index: Mapping[Kind, Sequence[Sequence[int]]]
    schedule: NoiseSchedule
    latent_scale: float
    latent_shift: float
    batch_size: int
    seed: int
    min_snr_gamma: float = 0.0
    debiased_estimation: bool = False
    loss: str = "mse"
    huber_delta: float = 0.1
    huber_schedule: str = "constant"
    noise_offset: float = 0.0
    caption_dropout: float = 0.0
    no_prompt: int = 0

    @property
    def rows(self) -> int:
        """Rows of a batch, instance and class rows alike."""
        return len(self.views) * self.batch_size

    @property
    def _latent_shape(self) -> tuple[int, ...]:
        return next(iter(self.moments.values())).shape[1:]

    def __call__(self, step: int, learning_rate: Mapping[str, float], wanted: Set[int] | None = None) -> Batch:
        """The batch of update number `step` (0 for the first): batch_size rows of each kind, instances first.

        Latents and noise, which take the time, are made of the `wanted` rows only (None: all); the others' are 0.
        """
        rows = [(kind, place) for kind in self.views for place in range(self.batch_size)]
        latents = np.zeros((len(rows), *self._latent_shape), np.float32)
        noise = np.zeros_like(latents)
        for row, (kind, place) in enumerate(rows):
            if wanted is None or row in wanted:
                latents[row] = self._latents(step, row, kind, place)
                noise[row] = self._noise(step, row, self._latent_shape)
        timestep = np.array([self._timestep(step, row) for row in range(len(rows))], np.int32)
        target_latent, target_noise = self.schedule.target(timestep)
        # Each row has its own timestep and so its own weight, instance and class rows alike.
        row_weight = self._timestep_weight(timestep) / self.batch_size
        is_prior = np.array([kind == "prior" for kind, _ in rows])
        prompts = self.prompts
        prompt_index = np.array([self._prompt(step, row, *kind_and_place) for row, kind_and_place in enumerate(rows)])
        if len(prompts) > len(rows):  # no more are sent than there are rows, and always as many
            prompts, prompt_index = prompts[prompt_index], np.arange(len(rows))
        return Batch(
            latents=latents,
            noise=noise,
            timestep=timestep,
            signal=self.schedule.signal(timestep).astype(np.float32),
            sigma=self.schedule.sigma(timestep).astype(np.float32),
            target_latent=target_latent.astype(np.float32),
            target_noise=target_noise.astype(np.float32),
            weight=(row_weight * [self.weight[kind] for kind, _ in rows]).astype(np.float32),
            instance_weight=(row_weight * ~is_prior).astype(np.float32),
            prior_weight=(row_weight * is_prior).astype(np.float32),
            huber_delta=self.schedule.huber_delta(timestep, self.huber_delta, self.huber_schedule).astype(np.float32),
            prompt_index=prompt_index.astype(np.int32),
            prompts=prompts,
            learning_rate={component: np.array(rate, np.float32) for component, rate in learning_rate.items()},
            key=np.int32(randomness.generator(self.seed, "rounding", step).integers(2**31)),
            loss=self.loss,
        )

    def _timestep_weight(self, timestep: np.ndarray) -> np.ndarray:
        """What a timestep counts, [rows]: all 1 by default."""
        if self.debiased_estimation:
            return self.schedule.debiased_weight(timestep)
        return self.schedule.min_snr_weight(timestep, self.min_snr_gamma)

    def _noise(self, step: int, row: int, shape: tuple[int, ...]) -> np.ndarray:
        """Diffusion noise, float32 [h, w, c]; an offset moves whole channels, so that light and dark can be learned."""
        noise = randomness.normal(self.seed, "noise", step, row, shape)
        if self.noise_offset:
            offset = randomness.normal(self.seed, "noise offset", step, row, shape[-1:])
            noise = noise + np.float32(self.noise_offset) * offset
        return noise

    def _latents(self, step: int, row: int, kind: Kind, place: int) -> np.ndarray:
        """A sample of the VAE posterior, shifted and scaled: float32 [h, w, c]."""
        choices = self.views[kind][self._image(step, kind, place)]
        view = choices[int(randomness.generator(self.seed, "view", step, row).integers(len(choices)))]
        mean, std = self.moments[view]
        # A stream of its own: the posterior sample and the diffusion noise must not be the same numbers.
        sample = mean + std * randomness.normal(self.seed, "posterior", step, row, mean.shape)
        return (sample - np.float32(self.latent_shift)) * np.float32(self.latent_scale)

    def _image(self, step: int, kind: Kind, place: int) -> int:
        """Which image of its kind a row shows."""
        count = len(self.views[kind])
        epoch, position = divmod(step * self.batch_size + place, count)
        return int(_order(self.seed, kind, count, epoch)[position])

    def _prompt(self, step: int, row: int, kind: Kind, place: int) -> int:
        """Which of `prompts` a row is trained with."""
        choices = self.prompt_index[kind][self._image(step, kind, place)]
        draw = randomness.generator(self.seed, "caption", step, row)
        if kind == "instance" and self.caption_dropout and draw.random() < self.caption_dropout:
            return self.no_prompt
        return choices[int(draw.integers(len(choices)))]

    def _timestep(self, step: int, row: int) -> int:
        return int(randomness.generator(self.seed, "timestep", step, row).integers(self.schedule.timesteps))


@lru_cache(maxsize=8)
def _order(seed: int, kind: Kind, count: int, epoch: int) -> np.ndarray:
    """The order of the images in an epoch; kinds of different sizes have epochs of different lengths."""
    return randomness.generator(seed, f"{kind} order", epoch).permutation(count)


def made_ahead(make: Callable[[int], Batch], start: int, stop: int, depth: int = 3) -> Iterator[tuple[int, Batch]]:
    """Yields (step, make(step)) in order while a thread works up to `depth` batches ahead."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
    try:
        pending = deque(pool.submit(make, step) for step in range(start, min(start + depth, stop)))
        for step in range(start, stop):
            batch = pending.popleft().result()
            if step + depth < stop:
                pending.append(pool.submit(make, step + depth))
            yield step, batch
    finally:
        pool.shutdown(wait=False, cancel_futures=True)

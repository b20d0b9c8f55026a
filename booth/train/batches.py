"""step -> Batch, without state: which images, which views, which noise, which timesteps.

A batch is a pure function of the run's inputs and the step. So a resumed run continues where it stopped, even in the
middle of an epoch, and batches can be made ahead of time on a thread.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np

from booth.common import randomness
from booth.data.images import Size
from booth.data.views import View
from booth.diffusion.backend import Batch
from booth.diffusion.schedule import NoiseSchedule

RowKind = str  # "instance" or "prior"


@dataclass(frozen=True)
class TrainingImage:
    """One image for batches.

    `views` all have one size. `prompts` are the prompts it may be trained with, as indices into the prompts of
    `Batches`. `weight` is the weight of its rows in the loss (lambda for a class image). `repeats` is how often it is
    shown in an epoch. `caption_dropout` is the probability of the empty prompt in place of its own.
    """

    views: Sequence[View]
    prompts: Sequence[int]
    weight: float = 1.0
    repeats: int = 1
    caption_dropout: float = 0.0


@dataclass(frozen=True)
class Bucket:
    """The images of one size. `order` has, for each kind, the images' indices, each as often as it is repeated."""

    size: Size
    order: Mapping[RowKind, Sequence[int]]


@dataclass(frozen=True)
class Batches:
    """The data that batches are made from.

    `images` has those of each kind, instance images first. `moments` are [2, h, w, c] for each view. `prompts` are
    those of all captions, as in Batch; `no_prompt` is the index of the empty prompt. `masks` are [h, w, 1] for the
    views that have one, as in Batch.
    """

    images: Mapping[RowKind, Sequence[TrainingImage]]
    moments: Mapping[View, np.ndarray]
    prompts: np.ndarray
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
    no_prompt: int = 0
    masks: Mapping[View, np.ndarray] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """The number of rows of a batch, instance and class rows together."""
        return len(self.images) * self.batch_size

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """The buckets, in the order of the first instance image of each size. Every bucket has images of each kind."""
        places: dict[Size, dict[RowKind, list[int]]] = {}
        for image in self.images["instance"]:
            places.setdefault(image.views[0].size, {kind: [] for kind in self.images})
        for kind, images in self.images.items():
            for place, image in enumerate(images):
                places[image.views[0].size][kind] += [place] * image.repeats
        return tuple(Bucket(size, order) for size, order in places.items())

    def __call__(self, step: int, learning_rate: Mapping[str, float], wanted: Set[int] | None = None) -> Batch:
        """Return the batch of update number `step` (0 for the first): batch_size rows of each kind, instances first.

        Latents and noise, which take most of the time, are made only for the `wanted` rows (None: all); those of other
        rows are 0.
        """
        number, turn = self._bucket(step)
        kinds = [kind for kind in self.images for _ in range(self.batch_size)]
        rows = [
            self.images[kind][self._place(number, kind, turn * self.batch_size + place)]
            for kind in self.images
            for place in range(self.batch_size)
        ]
        shape = self.moments[rows[0].views[0]].shape[1:]
        latents = np.zeros((len(rows), *shape), np.float32)
        noise = np.zeros_like(latents)
        mask = np.ones((len(rows), *(shape[:2] if self.masks else (1, 1)), 1), np.float32)
        for row, image in enumerate(rows):
            if wanted is None or row in wanted:
                view = self._view(step, row, image)
                latents[row] = self._latents(step, row, view)
                mask[row] = self.masks.get(view, 1.0)
                noise[row] = self._noise(step, row, shape)
        timestep = np.array([self._timestep(step, row) for row in range(len(rows))], np.int32)
        target_latent, target_noise = self.schedule.target(timestep)
        # Each row has its own timestep, and so its own weight, whether it is an instance or a class row.
        row_weight = self._timestep_weight(timestep) / self.batch_size
        is_prior = np.array([kind == "prior" for kind in kinds])
        prompts = self.prompts
        prompt_index = np.array([self._prompt(step, row, image) for row, image in enumerate(rows)])
        if len(prompts) > len(rows):  # at most as many prompts as rows are sent, and always the same number
            prompts, prompt_index = prompts[prompt_index], np.arange(len(rows))
        return Batch(
            latents=latents,
            noise=noise,
            timestep=timestep,
            signal=self.schedule.signal(timestep).astype(np.float32),
            sigma=self.schedule.sigma(timestep).astype(np.float32),
            target_latent=target_latent.astype(np.float32),
            target_noise=target_noise.astype(np.float32),
            weight=(row_weight * [image.weight for image in rows]).astype(np.float32),
            instance_weight=(row_weight * ~is_prior).astype(np.float32),
            prior_weight=(row_weight * is_prior).astype(np.float32),
            huber_delta=self.schedule.huber_delta(timestep, self.huber_delta, self.huber_schedule).astype(np.float32),
            mask=mask,
            prompt_index=prompt_index.astype(np.int32),
            prompts=prompts,
            learning_rate={component: np.array(rate, np.float32) for component, rate in learning_rate.items()},
            key=np.int32(randomness.generator(self.seed, "rounding", step).integers(2**31)),
            loss=self.loss,
        )

    def _timestep_weight(self, timestep: np.ndarray) -> np.ndarray:
        """Return the loss weight of each timestep, [rows]: all 1 by default."""
        if self.debiased_estimation:
            return self.schedule.debiased_weight(timestep)
        return self.schedule.min_snr_weight(timestep, self.min_snr_gamma)

    def _noise(self, step: int, row: int, shape: tuple[int, ...]) -> np.ndarray:
        """Return diffusion noise, float32 [h, w, c]. An offset shifts whole channels, so that overall brightness can be
        learned."""
        noise = randomness.normal(self.seed, "noise", step, row, shape)
        if self.noise_offset:
            offset = randomness.normal(self.seed, "noise offset", step, row, shape[-1:])
            noise = noise + np.float32(self.noise_offset) * offset
        return noise

    def _view(self, step: int, row: int, image: TrainingImage) -> View:
        """Return which view of its image a row shows."""
        return image.views[int(randomness.generator(self.seed, "view", step, row).integers(len(image.views)))]

    def _latents(self, step: int, row: int, view: View) -> np.ndarray:
        """Return a sample of the VAE posterior, shifted and scaled: float32 [h, w, c]."""
        mean, std = self.moments[view]
        # This stream is separate: the posterior sample and the diffusion noise must not be the same numbers.
        sample = mean + std * randomness.normal(self.seed, "posterior", step, row, mean.shape)
        return (sample - np.float32(self.latent_shift)) * np.float32(self.latent_scale)

    def _bucket(self, step: int) -> tuple[int, int]:
        """Return (the bucket of a batch, how many batches it had before).

        In a cycle of as many steps as there are instance images, each bucket gets as many steps as it has images. So
        all images are shown equally often, whatever their size.
        """
        counts = tuple(len(bucket.order["instance"]) for bucket in self.buckets)
        cycle, position = divmod(step, sum(counts))
        order = _bucket_order(self.seed, counts, cycle)
        number = int(order[position])
        return number, cycle * counts[number] + int(np.count_nonzero(order[:position] == number))

    def _place(self, bucket: int, kind: RowKind, position: int) -> int:
        """Return which image of its kind is at a position in the endless sequence of a bucket's epochs."""
        order = self.buckets[bucket].order[kind]
        epoch, rest = divmod(position, len(order))
        return order[int(_order(self.seed, kind, bucket, len(order), epoch)[rest])]

    def _prompt(self, step: int, row: int, image: TrainingImage) -> int:
        """Return which of `prompts` a row is trained with."""
        draw = randomness.generator(self.seed, "caption", step, row)
        if image.caption_dropout and draw.random() < image.caption_dropout:
            return self.no_prompt
        return image.prompts[int(draw.integers(len(image.prompts)))]

    def _timestep(self, step: int, row: int) -> int:
        return int(randomness.generator(self.seed, "timestep", step, row).integers(self.schedule.timesteps))


@lru_cache(maxsize=256)
def _order(seed: int, kind: RowKind, bucket: int, count: int, epoch: int) -> np.ndarray:
    """Return the order of a bucket's images in an epoch. Each kind has epochs as long as its number of images."""
    return randomness.generator(seed, f"{kind} order", epoch, bucket).permutation(count)


@lru_cache(maxsize=8)
def _bucket_order(seed: int, counts: tuple[int, ...], cycle: int) -> np.ndarray:
    """Return the bucket of each step of a cycle."""
    return randomness.generator(seed, "bucket order", cycle).permutation(np.repeat(np.arange(len(counts)), counts))


def made_ahead(make: Callable[[int], Batch], start: int, stop: int, depth: int = 3) -> Iterator[tuple[int, Batch]]:
    """Yield (step, make(step)) in order while a thread works up to `depth` batches ahead."""
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

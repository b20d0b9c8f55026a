"""A whole backend in NumPy for tests of the core, with a network that is small enough to differentiate by hand.

The "UNet" predicts its noisy input plus one trained number for each channel, which replaces the last bias of the real
UNet. The "VAE" averages blocks of 8 x 8 pixels. The backend trains in microseconds, resumes exactly and exports real
pipelines.
"""

from dataclasses import dataclass, replace

import numpy as np

from booth.common.errors import not_finite
from booth.common.hosts import ALONE
from booth.diffusion.objective import dreambooth_loss, noisy_latents
from booth.diffusion.solvers import HISTORY, solver_step

TRAINED = "conv_out.bias"


@dataclass(frozen=True)
class Models:
    unet: dict[str, np.ndarray]

    @property
    def bias(self):
        return self.unet[TRAINED]


@dataclass(frozen=True)
class State:
    models: Models
    velocity: np.ndarray


class FakeBackend:
    name = "numpy"
    survives_out_of_memory = False

    def __init__(self, config):
        self.config = config

    @staticmethod
    def check(config):
        pass

    @staticmethod
    def fit(config, pipeline, recorded):
        return config

    @staticmethod
    def hosts():
        return ALONE

    def own_rows(self, rows):
        return None

    def load(self, pipeline):
        return Models(pipeline.tensors("unet"))

    def encode_images(self, models, pixels):
        blocks = pixels.reshape(len(pixels), pixels.shape[1] // 8, 8, pixels.shape[2] // 8, 8, 3).mean(axis=(2, 4))
        mean = np.concatenate([blocks, blocks.mean(axis=-1, keepdims=True)], axis=-1)
        return mean, np.full_like(mean, 0.1)

    def encode_prompts(self, models, token_ids):
        return np.sin(token_ids[..., None] * np.arange(1, 5, dtype=np.float32), dtype=np.float32)

    def sample(self, models, noise, context, negative_context, table, guidance, step_noise=None):
        nothing = np.zeros_like(noise)
        latents, history = noise, (nothing,) * HISTORY
        shift = context.mean(axis=(1, 2)) + guidance * (context - negative_context).mean(axis=(1, 2))
        for place, step in enumerate(table):
            x = step.scale * latents
            prediction = 0.1 * x + models.bias + shift[:, None, None, None]
            fresh = nothing if step_noise is None else step_noise[:, place]
            latents, history = solver_step(step, x, history, prediction, fresh)
        return np.tanh(latents[..., :3].repeat(8, axis=1).repeat(8, axis=2))

    def init(self, models, *, training=True):
        return State(models, np.zeros_like(models.bias))

    def models(self, state):
        return state.models

    def train_step(self, state, batch):
        prediction = noisy_latents(batch) + state.models.bias
        _, metrics = dreambooth_loss(prediction, batch)
        target = batch.target_latent[:, None, None, None] * batch.latents
        target = target + batch.target_noise[:, None, None, None] * batch.noise
        # d mean(mask * (prediction - target)**2) / d bias
        by_row = 2 * (batch.mask * (prediction - target)).mean(axis=(1, 2)) / prediction.shape[-1]
        gradient = (batch.weight[:, None] * by_row).sum(axis=0)
        velocity = 0.9 * state.velocity + gradient
        trained = {TRAINED: state.models.bias - batch.learning_rate["unet"] * velocity}
        metrics["grad_norm"] = np.linalg.norm(gradient)
        metrics["skipped"] = np.float32(not np.isfinite(metrics["loss"] + metrics["grad_norm"]))
        if metrics["skipped"]:
            return state, metrics
        return State(Models(state.models.unet | trained), velocity), metrics

    def save(self, state, folder):
        if not np.isfinite(state.models.bias).all():
            raise not_finite(TRAINED)
        np.savez(folder / "state.npz", bias=state.models.bias, velocity=state.velocity)

    def restore(self, state, folder):
        with np.load(folder / "state.npz") as saved:
            models = replace(state.models, unet=state.models.unet | {TRAINED: saved["bias"]})
            return State(models, saved["velocity"])

    @staticmethod
    def saved_names(folder):
        return [f"unet.{TRAINED}"]

    def tensors(self, state):
        for name, array in state.models.unet.items():
            yield "unet", name, array


def watched(fail_at=("", 0), error=KeyboardInterrupt):
    """Return a FakeBackend class that records method calls in `calls`.

    `fail_at` is (method, n): the n-th call of this method raises `error`.
    """

    class Watched(FakeBackend):
        calls: list[str] = []  # noqa: RUF012 (all instances share one list on purpose)

    def watch(name):
        def method(self, *arguments):
            self.calls.append(name)
            if (name, self.calls.count(name)) == fail_at:
                raise error
            return getattr(FakeBackend, name)(self, *arguments)

        setattr(Watched, name, method)

    for name in ("encode_images", "sample", "train_step", "save"):
        watch(name)
    return Watched

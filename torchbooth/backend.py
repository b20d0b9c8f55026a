"""The Backend protocol over PyTorch: wiring only."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from booth.backend import Batch, Metrics
from booth.pipeline_dir import PipelineDir
from booth.solvers import SamplingTable
from torchbooth import checkpoint, models, optim, sample, step
from torchbooth.models import Models
from torchbooth.step import State

log = logging.getLogger("booth")


class Backend:
    """Trains on one device: the GPU if there is one, else the CPU."""

    name = "torch"
    capabilities: frozenset[str] = frozenset()

    def __init__(self, config: Any) -> None:
        self._config = config
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # float32 means float32. The setting is the process's: it also holds for other torch code beside a run.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        log.info("torchbooth on %s", torch.cuda.get_device_name() if self._device.type == "cuda" else "the CPU")

    def load(self, pipeline: PipelineDir) -> Models:
        return models.load(pipeline, self._device)

    @torch.inference_mode()
    def encode_images(self, models: Models, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        posterior = models.vae.encode(torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2)).latent_dist
        mean, std = (part.permute(0, 2, 3, 1).cpu().numpy() for part in (posterior.mean, posterior.std))
        return mean, std

    @torch.inference_mode()
    def encode_prompts(self, models: Models, token_ids: np.ndarray) -> np.ndarray:
        # SD1 trains and samples without an attention mask: padding tokens are part of the context.
        return models.text_encoder(torch.from_numpy(token_ids).long().to(self._device))[0].cpu().numpy()

    def sample(
        self,
        models: Models,
        noise: np.ndarray,
        context: np.ndarray,
        negative_context: np.ndarray,
        table: SamplingTable,
        guidance: float,
    ) -> np.ndarray:
        return sample.sample(models, noise, context, negative_context, table, guidance, self._config.train.precision)

    def init(self, models: Models, *, training: bool = True) -> State:
        if self._config.train.gradient_checkpointing:
            models.unet.enable_gradient_checkpointing()
        models.unet.train().requires_grad_(True)
        trainable = {f"unet.{name}": parameter for name, parameter in models.unet.named_parameters()}
        return State(models, trainable, optim.adamw(trainable.values(), self._config) if training else None)

    def models(self, state: State) -> Models:
        return state.models

    def train_step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        return step.train_step(state, batch, self._config)

    def save(self, state: State, folder: Path) -> None:
        checkpoint.save(state, folder)

    def restore(self, state: State, folder: Path) -> State:
        return checkpoint.restore(state, folder)

    def tensors(self, state: State) -> Iterator[tuple[str, str, np.ndarray]]:
        for name, tensor in state.trainable.items():
            component, _, key = name.partition(".")
            yield component, key, tensor.detach().cpu().numpy()

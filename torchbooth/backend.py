"""The Backend protocol over PyTorch: wiring only."""

import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from booth.backend import Batch, Metrics
from booth.config import trained_components
from booth.errors import UserError
from booth.pipeline_dir import PipelineDir
from booth.solvers import SamplingTable
from torchbooth import checkpoint, models, optim, sample, step
from torchbooth.models import Models, diffusers_name, recompute_activations
from torchbooth.precision import check_precision
from torchbooth.step import State

log = logging.getLogger("booth")


class Backend:
    """Trains on one device: the GPU if there is one, else the CPU."""

    name = "torch"
    capabilities: frozenset[str] = frozenset({"fp16", "adamw8bit"})

    def __init__(self, config: Any) -> None:
        self._config = config
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # float32 means float32. The setting is the process's: it also holds for other torch code beside a run.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        log.info("torchbooth on %s", torch.cuda.get_device_name() if self._device.type == "cuda" else "the CPU")

    @staticmethod
    def check(config: Any) -> None:
        check_precision(config.train.precision)
        if config.train.optimizer == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
            raise UserError(
                "train.optimizer='adamw8bit' needs bitsandbytes: install this project with its [8bit] extra,"
                " or use 'adamw'"
            )

    @staticmethod
    def hosts() -> None:
        """One process."""

    def load(self, pipeline: PipelineDir) -> Models:
        return models.load(pipeline, self._device)

    @torch.inference_mode()
    def encode_images(self, models: Models, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        posterior = models.vae.encode(torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2)).latent_dist
        mean, std = (part.permute(0, 2, 3, 1).cpu().numpy() for part in (posterior.mean, posterior.std))
        return mean, std

    @torch.inference_mode()
    def encode_prompts(self, models: Models, token_ids: np.ndarray) -> np.ndarray:
        # Stable Diffusion trains and samples without an attention mask: padding tokens are part of the context.
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
        trainable = {}
        for component in trained_components(self._config):
            network = getattr(models, component).train().requires_grad_(True)
            if self._config.train.gradient_checkpointing == "block":
                recompute_activations(network)
            for name, parameter in network.named_parameters():
                trainable[f"{component}.{diffusers_name(component, name)}"] = parameter
        optimizer = optim.make_optimizer(trainable, self._config) if training else None
        return State(models, trainable, optimizer, optim.make_loss_scaler(self._device, self._config))

    def models(self, state: State) -> Models:
        return state.models

    def own_rows(self, rows: int) -> None:
        """All of them."""

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

"""The Backend protocol over PyTorch: wiring only."""

import importlib.util
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from booth.backend import Batch, Metrics
from booth.config import trained_components
from booth.errors import UserError
from booth.pipeline_dir import PipelineDir
from booth.solvers import SamplingTable
from torchbooth import checkpoint, memory, models, optim, out_of_memory, sample, speed, step
from torchbooth.models import Models, diffusers_name
from torchbooth.precision import check_precision, set_tf32, weights_dtype
from torchbooth.step import State

log = logging.getLogger("booth")


class Backend:
    """Trains on one device: the GPU if there is one, else the CPU."""

    name = "torch"
    capabilities: frozenset[str] = frozenset({"fp16", "optimizers", "memory techniques"})

    def __init__(self, config: Any, device: torch.device | None = None) -> None:
        self._config = config
        self._device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.placement = memory.Placement(self._device)
        self._sampled: State | None = None  # the state that pictures were made of since its last update
        set_tf32(config.train.tf32)
        if device is None:
            log.info("torchbooth on %s", torch.cuda.get_device_name() if self._device.type == "cuda" else "the CPU")

    @staticmethod
    def check(config: Any) -> None:
        check_precision(config.train.precision)
        _check_packages(config)

    @staticmethod
    def fit(config: Any, pipeline: PipelineDir, recorded: Mapping[str, Any] | None) -> Any:
        if not config.memory.fit:
            return config
        from torchbooth.fit import fit  # planning needs parts of PyTorch that take a second to import

        return fit(config, pipeline, recorded)

    @staticmethod
    def hosts() -> None:
        """One process."""

    def load(self, pipeline: PipelineDir) -> Models:
        loaded = models.load(pipeline, weights_dtype(self._config))
        if self._config.memory.vae_tiling:
            memory.use_tiles(loaded.vae)
        return loaded

    def encode_images(self, models: Models, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with out_of_memory.named("encoding images"):
            self.placement.place(models.networks, "encoding images")
            moments = sample.encode(models, torch.from_numpy(pixels).permute(0, 3, 1, 2))
        mean, std = (part.permute(0, 2, 3, 1).cpu().numpy() for part in moments)
        return mean, std

    def encode_prompts(self, models: Models, token_ids: np.ndarray) -> np.ndarray:
        with out_of_memory.named("encoding prompts"):
            self.placement.place(models.networks, "encoding prompts")
            return sample.encode_prompts(models, torch.from_numpy(token_ids)).cpu().numpy()

    def sample(
        self,
        models: Models,
        noise: np.ndarray,
        context: np.ndarray,
        negative_context: np.ndarray,
        table: SamplingTable,
        guidance: float,
    ) -> np.ndarray:
        precision = self._config.train.precision
        with out_of_memory.named("previews" if self._sampled else "class images"):
            self.placement.place(models.networks, "sampling")
            return sample.sample(models, noise, context, negative_context, table, guidance, precision)

    def init(self, models: Models, *, training: bool = True) -> State:
        trainable, config = {}, self._config
        for component in trained_components(config):
            network = models.networks[component].train().requires_grad_(True)
            if config.train.gradient_checkpointing == "block":
                memory.recompute_activations(network, config.train.checkpointed_blocks if component == "unet" else ())
            for name, parameter in network.named_parameters():
                trainable[f"{component}.{diffusers_name(component, name)}"] = parameter
        if not training:
            return State(models, trainable, None, optim.make_loss_scaler(self._device, config))
        speed.apply(models.unet, config)
        self.placement.place(models.networks, "training")
        optimizer = memory.make_optimizer_of(trainable, config)
        return State(models, trainable, optimizer, optim.make_loss_scaler(self._device, config))

    def models(self, state: State) -> Models:
        if self._config.memory.offload_optimizer == "sampling" and state.optimizer:
            self.placement.move_states(state.optimizer, away=True)
        self._sampled = state
        return state.models

    def own_rows(self, rows: int) -> None:
        """All of them."""

    def train_step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        if self._sampled:
            self.placement.place(state.models.networks, "training")
            if self._config.memory.offload_optimizer == "sampling" and state.optimizer:
                self.placement.move_states(state.optimizer, away=False)
            self._sampled = None
        with out_of_memory.named("training"):
            return step.train_step(state, batch, self._config)

    def save(self, state: State, folder: Path) -> None:
        checkpoint.save(state, folder)

    def restore(self, state: State, folder: Path) -> State:
        return checkpoint.restore(state, folder)

    def tensors(self, state: State) -> Iterator[tuple[str, str, np.ndarray]]:
        for name, tensor in state.trainable.items():
            component, _, key = name.partition(".")
            yield component, key, tensor.detach().float().cpu().contiguous().numpy()


def _check_packages(config: Any) -> None:
    """UserError if a setting needs a package that is not installed."""
    optimizer = config.train.optimizer
    if optimizer in optim.BITSANDBYTES and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"train.optimizer={optimizer!r} needs bitsandbytes: install this project with its [8bit] extra, or use"
            " 'adamw'"
        )
    if config.train.attention == "xformers" and importlib.util.find_spec("xformers") is None:
        raise UserError(
            "train.attention='xformers' needs xformers: pip install xformers, or use 'auto', which is PyTorch's own"
        )

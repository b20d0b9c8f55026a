"""The Backend protocol over JAX: wiring only."""

import importlib.util
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from booth.common.errors import UserError
from booth.common.hosts import Hosts
from booth.config.trained import is_pulled, is_trained
from booth.config.values import is_remote
from booth.diffusion.backend import Batch, Metrics
from booth.diffusion.solvers import SamplingTable
from booth.models.pipeline import PipelineDir
from jaxbooth import adapters, checkpoint, ema, networks, optim, sample, step
from jaxbooth.hosts import join
from jaxbooth.networks import Models
from jaxbooth.optim import Params
from jaxbooth.precision import exact_float32
from jaxbooth.sharding import fetch, make_mesh, own_rows, place_batch, place_parameters
from jaxbooth.step import State
from jaxbooth.weights import to_diffusers

log = logging.getLogger("booth")


class Backend:
    """Trains on the devices of all hosts."""

    name = "jax"
    survives_out_of_memory = False

    def __init__(self, config: Any) -> None:
        exact_float32()
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # so that a resumed run need not compile for minutes again
            jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "booth" / "jax"))
        self._config = config
        self._settings = optim.Settings.of(config)
        self._mesh = make_mesh(config.mesh.fsdp)
        self._stepped = False
        hosts = f" of {jax.process_count()} hosts" if jax.process_count() > 1 else ""
        log.info("jaxbooth on %d x %s%s", self._mesh.size, self._mesh.devices.flat[0].device_kind, hosts)

    @staticmethod
    def check(config: Any) -> None:
        if is_remote(config.checkpoint.dir) and importlib.util.find_spec("gcsfs") is None:
            raise UserError(
                f"checkpoint.dir={config.checkpoint.dir!r} needs gcsfs; pip install gcsfs, or give a local folder"
            )

    @staticmethod
    def fit(config: Any, pipeline: PipelineDir, recorded: Mapping[str, Any] | None) -> Any:
        return config

    @staticmethod
    def hosts() -> Hosts:
        return join()

    def load(self, pipeline: PipelineDir) -> Models:
        return networks.load(pipeline, self._mesh, self._config)

    def encode_images(self, models: Models, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return sample.encode(models, self._mesh, pixels)

    def encode_prompts(self, models: Models, token_ids: np.ndarray) -> np.ndarray:
        return sample.encode_prompts(models, self._mesh, token_ids)

    def sample(
        self,
        models: Models,
        noise: np.ndarray,
        context: np.ndarray,
        negative_context: np.ndarray,
        table: SamplingTable,
        guidance: float,
        step_noise: np.ndarray | None = None,
    ) -> np.ndarray:
        return sample.sample(models, self._mesh, noise, context, negative_context, table, guidance, step_noise)

    def init(self, models: Models, *, training: bool = True) -> State:
        trainable = {name: value for name, value in models.params.items() if is_trained(self._config, name)}
        if models.adapter:
            trainable |= place_parameters(self._mesh, networks.initial_adapters(models, self._config.train.seed))
        rest = {name: value for name, value in models.params.items() if name not in trainable}
        optimizer = step.init_optimizer(trainable, self._settings, self._mesh) if training else None
        state = State(replace(models.with_adapter(), params=rest), trainable, optimizer)
        if not training:
            return state
        if self._config.ema.decay > 0:
            state = replace(state, average=ema.begin(trainable, self._mesh, self._config.ema.device))
        # These are copies, because an update consumes `trainable`.
        anchor = {name: jnp.copy(value) for name, value in trainable.items() if is_pulled(self._config, name)}
        return replace(state, anchor=anchor)

    def models(self, state: State) -> Models:
        return replace(state.models, params=state.models.params | self._result(state))

    def _result(self, state: State) -> Params:
        """Return the trained tensors for sampling and export: the average, if there is one."""
        return ema.on_device(state.average, self._mesh) if state.average else state.trainable

    def with_lora_weight(self, state: State, weight: float) -> State:
        return replace(state, trainable=adapters.with_weight(self._result(state), weight), average=None)

    def own_rows(self, rows: int) -> frozenset[int] | None:
        return own_rows(self._mesh, rows, self._config.train.accumulation)

    def train_step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        if not self._stepped:
            log.info("compiling the training step: minutes at full size, then kept for later runs")
            self._stepped = True
        placed = place_batch(self._mesh, batch, self._config.train.accumulation)
        used = ("unet", "text_encoder") if batch.prompts.ndim == 2 else ("unet",)
        trainable, optimizer, metrics = step.train_step(
            state.trainable,
            state.optimizer,
            {name: value for name, value in state.models.params.items() if name.partition(".")[0] in used},
            placed,
            state.anchor,
            unet=state.models.unet,
            text_encoder=state.models.text_encoder,
            settings=self._settings,
            mesh=self._mesh,
        )
        state = replace(state, trainable=trainable, optimizer=optimizer)
        if state.average:
            decay, device = self._config.ema.decay, self._config.ema.device
            average = ema.update(
                state.average, trainable, metrics["skipped"], decay=decay, device=device, mesh=self._mesh
            )
            state = replace(state, average=average)
        return state, metrics

    def save(self, state: State, folder: Path) -> None:
        checkpoint.save(state, folder)

    def restore(self, state: State, folder: Path) -> State:
        return checkpoint.restore(state, folder)

    @staticmethod
    def saved_names(folder: Path) -> Collection[str]:
        return checkpoint.saved_names(folder)

    def tensors(self, state: State) -> Iterator[tuple[str, str, np.ndarray]]:
        for name, array in self._result(state).items():
            component, _, key = name.partition(".")
            yield component, key, to_diffusers(state.models.networks[component], key, fetch(array))

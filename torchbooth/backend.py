"""The Backend protocol over PyTorch: wiring only."""

import logging
from collections.abc import Collection, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch

from booth.common.errors import UserError
from booth.common.hosts import Hosts
from booth.config.trained import is_pulled, is_trained, trains_text
from booth.diffusion.backend import Batch, Metrics
from booth.diffusion.solvers import SamplingTable
from booth.models.adapters import adapter_of
from booth.models.new_tokens import initial_rows
from booth.models.pipeline import PipelineDir
from torchbooth import adapters, checkpoint, ema, memory, networks, optim, out_of_memory, sample, speed, step, tokens
from torchbooth.hosts import join, local_device
from torchbooth.networks import Models, diffusers_name
from torchbooth.packages import check_packages
from torchbooth.precision import check_precision, set_tf32, weights_dtype
from torchbooth.sharding import GradientSum, check_mesh, join_rows, own_rows, processes, shard, split_rows, whole
from torchbooth.step import State

log = logging.getLogger("booth")


class Backend:
    """Trains on one device, the GPU if there is one, or on one for each process."""

    name = "torch"
    survives_out_of_memory = True

    def __init__(self, config: Any, device: torch.device | None = None) -> None:
        self._config = config
        self._device = device or local_device()
        self.placement = memory.Placement(self._device)
        self._sampled: State | None = None  # the state that made pictures after its last update
        set_tf32(config.train.tf32)
        if device is None:
            several = f", {processes()} processes" if processes() > 1 else ""
            name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "the CPU"
            log.info("torchbooth on %s%s", name, several)

    @staticmethod
    def check(config: Any) -> None:
        check_precision(config.train.precision)
        check_packages(config)
        check_mesh(config.mesh.fsdp)
        if config.train.compile != "none" and not torch.cuda.is_available():
            raise UserError(
                f"train.compile={config.train.compile!r} needs a GPU: for a CPU, PyTorch's compiler makes a UNet whose"
                " gradients are wrong (seen with 2.13); use 'none'"
            )

    @staticmethod
    def fit(config: Any, pipeline: PipelineDir, recorded: Mapping[str, Any] | None) -> Any:
        if not config.memory.fit:
            return config
        if processes() > 1:
            raise UserError(
                f"memory.fit={config.memory.fit!r} plans for one process, not {processes()}: see with torchbooth plan"
                " what a process needs, set the techniques, and leave memory.fit empty"
            )
        from torchbooth.fit import fit  # planning needs parts of PyTorch that take a second to import

        return fit(Backend, config, pipeline, recorded)

    @staticmethod
    def hosts() -> Hosts:
        return join()

    def load(self, pipeline: PipelineDir) -> Models:
        loaded = networks.load(pipeline, weights_dtype(self._config), adapter_of(self._config, pipeline))
        if (rows := initial_rows(self._config, pipeline)) is not None:
            tokens.add(loaded.text_encoder, rows)
        if self._config.memory.vae_tiling:
            memory.use_tiles(loaded.vae)
        return loaded

    def encode_images(self, models: Models, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with out_of_memory.named("encoding images"):
            self.placement.place(models.networks, "encoding images")
            moments = sample.encode(models, torch.from_numpy(split_rows(pixels)).permute(0, 3, 1, 2))
        mean, std = (join_rows(part.permute(0, 2, 3, 1).cpu().numpy(), len(pixels)) for part in moments)
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
        step_noise: np.ndarray | None = None,
    ) -> np.ndarray:
        precision = self._config.train.precision
        with out_of_memory.named("previews" if self._sampled else "class images"):
            self.placement.place(models.networks, "sampling")
            own, contexts, negatives = map(split_rows, (noise, context, negative_context))
            fresh = None if step_noise is None else split_rows(step_noise)
            pixels = sample.sample(models, own, contexts, negatives, table, guidance, precision, fresh)
            return join_rows(pixels, len(noise))

    def init(self, models: Models, *, training: bool = True) -> State:
        trainable, config = {}, self._config
        for component in ("unet", "text_encoder") if trains_text(config) else ("unet",):
            network = models.networks[component]
            if models.adapter and (layers := models.adapter.layers(component)):
                names = {diffusers_name(component, own): own for own, _ in network.named_modules()}
                adapters.add(network, [names[layer] for layer in layers], models.adapter)
            for name, parameter in network.named_parameters():
                full_name = f"{component}.{diffusers_name(component, adapters.without_peft_name(name))}"
                parameter.requires_grad_(is_trained(config, full_name))
            # This is done again after previews: the two modes of a network that does not train differ in the last bits.
            network.train(training and memory.trains(network))
            if config.train.gradient_checkpointing == "block":
                memory.recompute_activations(network, config.train.checkpointed_blocks if component == "unet" else ())
            if component == "unet" and config.mesh.fsdp > 1:
                shard(network.to(self._device), config.mesh.fsdp)
            for name, parameter in network.named_parameters():
                if parameter.requires_grad:
                    trainable[f"{component}.{diffusers_name(component, adapters.without_peft_name(name))}"] = parameter
        if models.adapter:
            for name, value in models.adapter.initial(config.train.seed).items():
                trainable[name].data.copy_(torch.from_numpy(value))
        scaler = optim.make_loss_scaler(self._device, config)
        if not training:
            return State(models, trainable, None, scaler, GradientSum([]), models.unet)
        forward = speed.apply(models.unet, config)
        with out_of_memory.named("training"):
            self.placement.place(models.networks, "training")
        gradients = GradientSum(trainable.values())  # before the optimizer, which may need them in the backward pass
        optimizer = memory.make_optimizer_of(trainable, config, gradients.wait)
        state = State(models, trainable, optimizer, scaler, gradients, forward)
        with out_of_memory.named("training"):
            if config.ema.decay > 0:
                state.average = ema.Average(trainable, config)
            pulled = {name: parameter for name, parameter in trainable.items() if is_pulled(config, name)}
            state.anchor = {name: parameter.detach().clone() for name, parameter in pulled.items()}
        return state

    def models(self, state: State) -> Models:
        if self._config.memory.offload_optimizer == "sampling" and state.optimizer:
            self.placement.move_states(state.optimizer, away=True)
        if state.average:
            state.average.put_in()
        self._sampled = state
        for network in state.models.networks.values():
            network.eval()  # pictures are made without dropout
        return state.models

    def with_lora_weight(self, state: State, weight: float) -> State:
        for network in state.models.networks.values():
            adapters.set_weight(network, weight)
        return state

    def own_rows(self, rows: int) -> Set[int] | None:
        if rows // self._config.train.accumulation < processes():
            log.warning(
                "%d rows for %d processes: some have nothing to do; raise train.batch_size",
                rows // self._config.train.accumulation,
                processes(),
            )
        return own_rows(rows, self._config.train.accumulation)

    def train_step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        with out_of_memory.named("training"):
            if self._sampled:
                self.placement.place(state.models.networks, "training")
                for network in state.models.networks.values():
                    network.train(memory.trains(network))
                if self._config.memory.offload_optimizer == "sampling" and state.optimizer:
                    self.placement.move_states(state.optimizer, away=False)
                if state.average:
                    state.average.take_out()
                self._sampled = None
            state, metrics = step.train_step(state, batch, self._config)
            if state.average:
                state.average.update(metrics["skipped"])
            return state, metrics

    def save(self, state: State, folder: Path) -> None:
        checkpoint.save(state, folder)

    def restore(self, state: State, folder: Path) -> State:
        return checkpoint.restore(state, folder)

    @staticmethod
    def saved_names(folder: Path) -> Collection[str]:
        return checkpoint.saved_names(folder)

    def tensors(self, state: State) -> Iterator[tuple[str, str, np.ndarray]]:
        for name, tensor in (state.average.weights if state.average else state.trainable).items():
            component, _, key = name.partition(".")
            yield component, key, whole(tensor.detach()).cpu().float().contiguous().numpy()

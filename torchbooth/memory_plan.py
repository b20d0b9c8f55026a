"""The plan: the peak memory of every phase of a run on a GPU, computed without a GPU.

torchbooth's own functions run on fake tensors (shapes without data), and the memory of these tensors is added up as
they come and go. A plan cannot see the memory that the GPU itself needs: the context, workspaces of the libraries, gaps
between tensors. `CONTEXT_GIB` and `GAPS` are reserved for them. Attention counts as in PyTorch's kernel for CPUs, which
keeps no matrix of attention weights, like the kernels for GPUs.
"""

import logging
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from booth.config.concepts import has_prior
from booth.config.trained import rate_groups, trains_text
from booth.config.values import get
from booth.data.inputs import largest_prompts, largest_size, preview_batch_size
from booth.diffusion.backend import ROW_FIELDS, Batch
from booth.diffusion.sampling import latent_shape
from booth.diffusion.solvers import HISTORY, SamplingStep, is_guided
from booth.models.adapters import adapter_of
from booth.models.pipeline import PipelineDir
from torchbooth import memory, networks, sample, tokens
from torchbooth.host_states import HOST, movable
from torchbooth.memory import AT_WORK, trains
from torchbooth.networks import Models, diffusers_name
from torchbooth.precision import weights_dtype
from torchbooth.step import State

log = logging.getLogger("booth")

GIB = 2**30
CONTEXT_GIB = 0.7  # CUDA's context with the libraries' kernels and workspaces
GAPS = 1.1  # PyTorch's reserved memory divided by the memory in use; assumed, not measured

PHASES = ("encoding prompts", "class images", "encoding images", "training", "previews", "export")
TECHNIQUES = (
    "train.precision", "train.optimizer", "train.accumulation", "train.gradient_checkpointing",
    "train.checkpointed_blocks", "memory.weights", "memory.fused_backward", "memory.offload_optimizer",
    "memory.vae_tiling", "prior.batch_size", "data.encode_batch_size",
)  # fmt: skip


@dataclass
class Plan:
    """The peak memory of every phase on the GPU, in GiB. The fields have the names in the JSON that `--json` writes.

    `peak_gib` has the phases that the config has. `needed_gib` is the memory that a GPU must have for the greatest of
    them. `techniques` are the settings of the memory techniques.
    """

    peak_gib: dict[str, float]
    needed_gib: float
    techniques: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """Return the plan as text for the user."""
        lines = [f"  {phase:<17} {peak:6.2f} GiB" for phase, peak in self.peak_gib.items()]
        return "\n".join(
            [*lines, f"  a card with {self.needed_gib:.1f} GiB, its context and gaps between tensors included"]
        )


class Tracker(memory.Placement, TorchDispatchMode):
    """Adds up the memory of tensors that are made while it is active, and keeps the peak.

    It is also the run's `memory.Placement`: networks count while the placement would put them on the GPU.
    """

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self._live: set[int] = set()
        self._away = 0  # bytes of optimizer states in the host's memory
        self._tensors = self._networks = self.peak = 0

    def place(self, networks: Mapping[str, Any], work: str) -> None:
        self._networks = 0
        for name, network in networks.items():
            tensors = [*network.parameters(), *network.buffers()]
            self._live.update(tensor.untyped_storage()._cdata for tensor in tensors)  # views of them need no new memory
            if name in AT_WORK[work] or trains(network):
                self._networks += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self._grow(0)

    def move_states(self, optimizer: torch.optim.Optimizer, *, away: bool) -> None:
        self._away = sum(map(_bytes, optimizer.state.values())) if away else 0

    def hold(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that were made while this was inactive, and that stay."""
        for tensor in tensors:
            self._see(tensor)

    def restart(self) -> None:
        """Begin a new peak."""
        self.peak = 0

    def peak_so_far(self) -> int:
        """Return the peak in bytes, including the tensors that exist now."""
        self._grow(0)
        return self.peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0  # `item()`: an optimizer asks for a number, which fake tensors do not have
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._see, result)
        return result

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._live:
            self._live.add(key)
            size = -(-storage.nbytes() // 512) * 512  # PyTorch's allocator rounds in this way
            weakref.finalize(storage, self._gone, key, size)
            self._grow(size)

    def _gone(self, key: int, size: int) -> None:
        self._live.discard(key)
        self._tensors -= size

    def _grow(self, size: int) -> None:
        self._tensors += size
        self.peak = max(self.peak, self._tensors + self._networks - self._away)


def plan(backend_class: type[Any], config: Any, pipeline: PipelineDir, phases: Collection[str] = PHASES) -> Plan:
    """Run the given phases of the config's run on fake tensors, as far as it has them. This takes 5 to 15 s at full
    size.

    `backend_class` is torchbooth's `Backend`; it is an argument because that class itself asks for plans.
    """
    rehearsal = _Rehearsal(backend_class, config, pipeline)
    peaks = {phase: rehearsal.peak(phase) / GIB for phase in PHASES if phase in phases and rehearsal.has(phase)}
    needed = max(peaks.values(), default=0.0) * GAPS + CONTEXT_GIB
    techniques = {name: get(config, name) for name in TECHNIQUES}
    return Plan({name: round(peak, 4) for name, peak in peaks.items()}, round(needed, 2), techniques)


class _Rehearsal:
    """A run on fake tensors."""

    def __init__(self, backend_class: type[Any], config: Any, pipeline: PipelineDir) -> None:
        # These three hardly change the memory, and fake tensors do not support them.
        config = config.copy_and_resolve_references()
        config.train.channels_last, config.train.attention, config.train.compile = False, "auto", "none"
        self._config, self._sizes = config, Sizes.of(config, pipeline)
        self._tracker, self._fake = Tracker(), FakeTensorMode(allow_non_fake_inputs=True)
        self._backend = backend_class(config, HOST)
        self._backend.placement = self._tracker
        scale, shift = pipeline.latent_scaling
        with self._fake, torch.random.fork_rng(devices=[]):
            built = networks.build(pipeline, weights_dtype(config))
            shapes = {
                component: {diffusers_name(component, name): tuple(p.shape) for name, p in network.named_parameters()}
                for component, network in built.items()
            }
            adapter = adapter_of(config, pipeline, shapes)
            if config.tokens.add:
                tokens.add(built["text_encoder"], np.zeros((len(config.tokens.add), self._sizes.width), np.float32))
            self._models = Models(**built, vae_scale=scale, vae_shift=shift, adapter=adapter)
        if config.memory.vae_tiling:
            memory.use_tiles(self._models.vae)
        self._state: State | None = None

    def has(self, phase: str) -> bool:
        config = self._config
        return {
            "class images": has_prior(config),
            "previews": config.samples.every_steps > 0 or config.samples.before_after,
        }.get(phase, True)

    def peak(self, phase: str) -> float:
        """Return the peak of a phase in bytes."""
        if phase not in ("training", "previews", "export"):
            return self._measured({
                "encoding prompts": self._encode_prompts,
                "class images": lambda: self._sample(self._config.prior, self._config.prior.batch_size),
                "encoding images": self._encode_images,
            }[phase])  # fmt: skip
        if self._state is None:
            # This is outside the mode: bitsandbytes computes its tables, which needs numbers.
            self._state = self._backend.init(self._models)
            # A loss scaler would ask whether gradients overflowed.
            self._state.scaler = torch.amp.GradScaler(HOST.type, enabled=False)
            if self._state.average and not self._state.average.on_host:
                self._tracker.hold(self._state.average.weights.values())
            self._tracker.hold(self._state.anchor.values())
            self._training = max(self._measured(self._update) for _ in range(2))  # the first update makes the moments
        optimizer = self._state.optimizer
        assert optimizer is not None
        on_host = self._config.memory.offload_optimizer == "always"  # fake tensors cannot be on the host
        away = sum(map(_bytes, optimizer.state.values())) if on_host else 0
        if (average := self._state.average) and average.on_host:
            away += _bytes(average.weights)
        if phase == "training":
            # On the GPU are the states of one tensor, and those of the next, which are being copied.
            return self._training - away + 2 * on_host * max(map(_bytes, optimizer.state.values()))
        if phase == "export":
            return self._measured(lambda: None) - away
        self._backend.models(self._state)
        peak = self._measured(lambda: self._sample(self._config.samples, preview_batch_size(self._config)))
        self._tracker.move_states(optimizer, away=False)
        self._tracker.place(self._models.networks, "training")
        return peak - away

    def _measured(self, work: Callable[[], Any]) -> float:
        self._tracker.restart()
        with self._fake, self._tracker:
            work()
        return self._tracker.peak_so_far()

    def _update(self) -> None:
        assert self._state is not None
        self._backend.train_step(self._state, self._sizes.batch(self._config))

    def _sample(self, settings: Any, images: int) -> None:
        rows = 2 * images if is_guided(settings.guidance) else images
        noise, contexts = self._sizes.noise(images), self._sizes.contexts(rows)
        self._tracker.place(self._models.networks, "sampling")
        precision = self._config.train.precision
        latents = sample.denoise(self._models, noise, contexts, SAMPLING_TABLE, settings.guidance, precision)
        sample.decode(self._models, latents[:1])  # images are decoded one by one

    def _encode_prompts(self) -> None:
        self._tracker.place(self._models.networks, "encoding prompts")
        sample.encode_prompts(self._models, torch.zeros(1, self._sizes.tokens, dtype=torch.long))

    def _encode_images(self) -> None:
        self._tracker.place(self._models.networks, "encoding images")
        sample.encode(self._models, self._sizes.pixels(self._config.data.encode_batch_size))


def _bytes(state: Mapping[str, Any]) -> int:
    """Return the bytes of the optimizer states of one tensor that could be in the host's memory."""
    return sum(tensor.numel() * tensor.element_size() for _, tensor in movable(state))


@dataclass(frozen=True)
class Sizes:
    """The shapes of the networks' inputs."""

    size: tuple[int, int]  # the size of the largest training images, in pixels
    latents: tuple[int, int, int]  # h, w, c
    tokens: int
    width: int  # the width of a context
    kinds: int  # the number of kinds of rows: 2 with class images
    prompts: int  # the number of prompts in an update

    @staticmethod
    def of(config: Any, pipeline: PipelineDir) -> "Sizes":
        size = largest_size(config, pipeline)
        return Sizes(
            size,
            latent_shape(pipeline, *size),
            pipeline.component_config("text_encoder")["max_position_embeddings"],
            pipeline.component_config("unet")["cross_attention_dim"],
            2 if has_prior(config) else 1,
            largest_prompts(config),
        )

    def noise(self, images: int) -> torch.Tensor:
        height, width, channels = self.latents
        return torch.zeros(images, channels, height, width)

    def contexts(self, rows: int) -> torch.Tensor:
        return torch.zeros(rows, self.tokens, self.width)

    def pixels(self, images: int) -> torch.Tensor:
        return torch.zeros(images, 3, *self.size[::-1])

    def batch(self, config: Any) -> Batch:
        """Return a batch of zeros: only shapes and types matter."""
        rows = self.kinds * config.train.batch_size
        latents, row = np.zeros((rows, *self.latents), np.float32), np.zeros(rows, np.float32)
        arrays: dict[str, Any] = dict.fromkeys(ROW_FIELDS, row)
        arrays |= {"latents": latents, "noise": latents, "mask": np.ones((rows, 1, 1, 1), np.float32)}
        arrays |= {name: np.zeros(rows, np.int32) for name in ("timestep", "prompt_index")}
        prompts = np.zeros((self.prompts, self.tokens, self.width), np.float32)
        if trains_text(config):
            prompts = np.zeros((self.prompts, self.tokens), np.int32)
        rates = dict.fromkeys(rate_groups(config), np.zeros((), np.float32))
        return Batch(**arrays, prompts=prompts, learning_rate=rates, loss=config.train.loss)


# Two steps are enough to show the peak of all; the first step alone has nothing from an earlier step in memory.
SAMPLING_TABLE = (SamplingStep(0.0, 1.0, 1.0, 1.0, 1.0, 1.0, (1.0,) * (HISTORY + 1), 1.0, 1.0),) * 2

"""THE plan: the peak memory of every phase of a run on a GPU that need not be there.

torchbooth's own functions run on fake tensors (shapes without data), and what they would take is added up as tensors
come and go. What it cannot see is a GPU's own: the context, workspaces of the libraries, gaps between tensors; for them
`CONTEXT_GIB` and `GAPS` are set aside. Attention counts as PyTorch's kernel for CPUs takes it, which keeps no matrix of
weights, as those for GPUs.
"""

import logging
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from booth.backend import ROW_FIELDS, Batch
from booth.config import get, trained_components
from booth.pipeline_dir import PipelineDir
from booth.preparation import preview_batch_size
from booth.sampling import latent_shape
from booth.solvers import SamplingStep, is_guided
from torchbooth import memory, models, sample
from torchbooth.memory import AT_WORK, HOST, movable, trains
from torchbooth.models import Models
from torchbooth.precision import weights_dtype

log = logging.getLogger("booth")

GIB = 2**30
CONTEXT_GIB = 0.7  # of a card's memory: CUDA's context with the libraries' kernels and workspaces
GAPS = 1.05  # what PyTorch's allocator reserves over what is in use; not measured yet

TECHNIQUES = (
    "train.precision", "train.optimizer", "train.accumulation", "train.gradient_checkpointing",
    "train.checkpointed_blocks", "memory.weights", "memory.fused_backward", "memory.offload_optimizer",
    "memory.vae_tiling", "prior.batch_size", "data.encode_batch_size",
)  # fmt: skip


@dataclass
class Plan:
    """Peak memory in GiB on the GPU of every phase; the names of the JSON that `--json` writes.

    `peak_gib`: by phase; only phases that the config has. `needed_gib`: what a card must have for the greatest.
    `techniques`: the settings of the memory techniques.
    """

    peak_gib: dict[str, float]
    needed_gib: float
    techniques: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def worst(self) -> str:
        """The phase that needs the most."""
        return max(self.peak_gib, key=lambda phase: self.peak_gib[phase])

    def text(self) -> str:
        """For people."""
        lines = [f"  {phase:<17} {peak:6.2f} GiB" for phase, peak in self.peak_gib.items()]
        return "\n".join(
            [*lines, f"  a card with {self.needed_gib:.1f} GiB, its context and gaps between tensors included"]
        )


class Tracker(memory.Placement, TorchDispatchMode):
    """Adds up the memory of tensors that are made while it is on, and keeps the peak.

    It is the run's `memory.Placement` too: networks count where that would put them on the GPU.
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
            self._live.update(tensor.untyped_storage()._cdata for tensor in tensors)  # views of them are nothing new
            if name in AT_WORK[work] or trains(network):
                self._networks += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self._grow(0)

    def move_states(self, optimizer: torch.optim.Optimizer, *, away: bool) -> None:
        self._away = state_bytes(optimizer) if away else 0

    def restart(self) -> None:
        """A new peak begins with what is there now."""
        self.peak = 0
        self._grow(0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0  # `item()`, where an optimizer asks for a number that is not there
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._see, result)
        return result

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._live:
            self._live.add(key)
            size = -(-storage.nbytes() // 512) * 512  # as PyTorch's allocator rounds
            weakref.finalize(storage, self._gone, key, size)
            self._grow(size)

    def _gone(self, key: int, size: int) -> None:
        self._live.discard(key)
        self._tensors -= size

    def _grow(self, size: int) -> None:
        self._tensors += size
        self.peak = max(self.peak, self._tensors + self._networks - self._away)


def plan(config: Any, pipeline: PipelineDir) -> Plan:
    """Runs every phase of the config's run once on fake tensors: some seconds to a minute at full size."""
    from torchbooth.backend import Backend

    peaks: dict[str, float] = {}
    tracker, fake = Tracker(), FakeTensorMode(allow_non_fake_inputs=True)

    def phase(name: str, work: Callable[[], Any]) -> None:
        tracker.restart()
        with tracker:
            work()
        peaks[name] = max(peaks.get(name, 0.0), tracker.peak / GIB)

    with fake, torch.random.fork_rng(devices=[]):
        backend = Backend(config, HOST)
        backend.placement = tracker
        scale, shift = pipeline.latent_scaling
        made = Models(**models.build(pipeline, weights_dtype(config)), vae_scale=scale, vae_shift=shift)
        sizes = _Sizes.of(config, pipeline)
        if config.memory.vae_tiling:
            memory.use_tiles(made.vae)

        def sampling(settings: Any, images: int) -> None:
            noise, contexts = (
                sizes.noise(images),
                sizes.contexts(2 * images if is_guided(settings.guidance) else images),
            )
            tracker.place(made.networks, "sampling")
            latents = sample.denoise(made, noise, contexts, _TABLE, settings.guidance, config.train.precision)
            sample.decode(made, latents[:1])  # as all are: one by one

        def encoding_prompts() -> None:
            tracker.place(made.networks, "encoding prompts")
            sample.encode_prompts(made, torch.zeros(1, sizes.tokens, dtype=torch.long))

        def encoding_images() -> None:
            tracker.place(made.networks, "encoding images")
            sample.encode(made, sizes.pixels(config.data.encode_batch_size))

        phase("encoding prompts", encoding_prompts)
        if config.prior.weight > 0:
            phase("class images", lambda: sampling(config.prior, config.prior.batch_size))
        phase("encoding images", encoding_images)
    state = backend.init(made)  # outside: bitsandbytes computes its tables, for which numbers are needed
    assert state.optimizer is not None
    with fake:
        batch = sizes.batch(config)
        for _ in range(2):  # the moments are made in the first update
            phase("training", lambda: backend.train_step(state, batch))
        if config.samples.every_steps or config.samples.before_after:
            backend.models(state)
            phase("previews", lambda: sampling(config.samples, preview_batch_size(config)))
        if config.memory.offload_optimizer == "always":
            # Fake tensors are all in one memory. On a GPU are the states of one tensor, and of the one after it.
            for name, there in (("training", 2), ("previews", 0)):
                if name in peaks:
                    largest = max(_bytes(states) for states in state.optimizer.state.values())
                    peaks[name] -= (state_bytes(state.optimizer) - there * largest) / GIB
    needed = max(peaks.values()) * GAPS + CONTEXT_GIB
    return Plan({name: round(peak, 2) for name, peak in peaks.items()}, round(needed, 2), techniques(config))


def state_bytes(optimizer: Any) -> int:
    """Of all states that could be in the host's memory."""
    return sum(map(_bytes, optimizer.state.values()))


def _bytes(state: Mapping[str, Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for _, tensor in movable(state))


@dataclass(frozen=True)
class _Sizes:
    """Shapes of what goes through the networks."""

    side: int  # of an image, in pixels
    latents: tuple[int, int, int]  # h, w, c
    tokens: int
    width: int  # of a context
    prompts: int

    @staticmethod
    def of(config: Any, pipeline: PipelineDir) -> "_Sizes":
        side = config.data.resolution
        return _Sizes(
            side,
            latent_shape(pipeline, side, side),
            pipeline.component_config("text_encoder")["max_position_embeddings"],
            pipeline.component_config("unet")["cross_attention_dim"],
            2 if config.prior.weight > 0 else 1,
        )

    def noise(self, images: int) -> torch.Tensor:
        height, width, channels = self.latents
        return torch.zeros(images, channels, height, width)

    def contexts(self, rows: int) -> torch.Tensor:
        return torch.zeros(rows, self.tokens, self.width)

    def pixels(self, images: int) -> torch.Tensor:
        return torch.zeros(images, 3, self.side, self.side)

    def batch(self, config: Any) -> Batch:
        """A batch of zeros: only shapes and types matter."""
        rows = self.prompts * config.train.batch_size
        latents, row = np.zeros((rows, *self.latents), np.float32), np.zeros(rows, np.float32)
        arrays: dict[str, Any] = dict.fromkeys(ROW_FIELDS, row)
        arrays |= {"latents": latents, "noise": latents}
        arrays |= {name: np.zeros(rows, np.int32) for name in ("timestep", "prompt_index")}
        prompts = np.zeros((self.prompts, self.tokens, self.width), np.float32)
        if config.train.text_encoder:
            prompts = np.zeros((self.prompts, self.tokens), np.int32)
        rates = dict.fromkeys(trained_components(config), np.zeros((), np.float32))
        return Batch(**arrays, prompts=prompts, learning_rate=rates)


# Two steps are as good as all: one has nothing from the step before it yet.
_TABLE = (SamplingStep(0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),) * 2


def techniques(config: Any) -> dict[str, Any]:
    """The settings that `fit` may choose, as they are."""
    return {name: get(config, name) for name in TECHNIQUES}

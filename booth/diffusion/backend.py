"""The whole contract between the core and a backend.

The core (`booth`) decides what happens: which images, which noise, which weights on which rows, when to save. A
backend (`jaxbooth`, `torchbooth`) only computes. Everything that crosses the line is NumPy, made by the core, and equal
on both backends to the bit; models and training state belong to the backend and are opaque to the core.
"""

import importlib
from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from booth.common.errors import UserError
from booth.common.hosts import Hosts
from booth.diffusion.solvers import SamplingTable
from booth.models.pipeline import PipelineDir

Array = Any  # NumPy's, as the core makes it; the framework's own once a backend has placed a batch


@dataclass(frozen=True)
class Batch:
    """What one update trains on; rows are instance rows first, then class rows, float32 unless said otherwise."""

    latents: Array  # [rows, h, w, c], sampled from the VAE posterior, shifted and scaled
    noise: Array  # [rows, h, w, c]
    timestep: Array  # [rows] int32
    signal: Array  # [rows]: z_t = signal * latents + sigma * noise
    sigma: Array  # [rows]
    target_latent: Array  # [rows]: target = target_latent * latents + target_noise * noise
    target_noise: Array  # [rows]
    weight: Array  # [rows]: loss = sum(weight * mean(mask * error of prediction - target))
    instance_weight: Array  # [rows], the same for the reported loss of the instance rows
    prior_weight: Array  # [rows], and of the class rows, before lambda
    huber_delta: Array  # [rows], > 0: where the error turns from squared to absolute; nothing reads it if that is "mse"
    mask: Array  # [rows, h, w, 1]: how much each latent counts, 1 on average; without masks [rows, 1, 1, 1], all 1
    prompt_index: Array  # [rows] int32, into `prompts`
    # What is said: [unique prompts, tokens, width], the text encoder's output; if that trains, what goes into it:
    # [unique prompts, tokens] int32 token ids.
    prompts: Array
    learning_rate: Mapping[str, Array]  # [] of each trained component
    key: Array = 0  # [] a whole number below 2**31, new in each update: for what a device rounds at random
    loss: str = "mse"  # what the error is, of `booth.config.choices.LOSSES`; compiled in, since a run has one

    def pieces(self, count: int) -> list["Batch"]:
        """Return the batch in `count` pieces with as many rows of each kind, in any framework's arrays.

        A row's weight belongs to the whole batch, so losses and gradients of the pieces are simply added.
        """
        return [
            replace(self, **{name: getattr(self, name)[first::count] for name in ROW_FIELDS}) for first in range(count)
        ]


STATIC_FIELDS = ("loss",)  # no arrays: another value is another program
ROW_FIELDS = tuple(
    field.name for field in fields(Batch) if field.name not in ("prompts", "learning_rate", "key", *STATIC_FIELDS)
)

WEIGHT_FIELDS = ("weight", "instance_weight", "prior_weight")  # 0 in all of them: a row that counts for nothing


Models = TypeVar("Models")
State = TypeVar("State")
Metrics = dict[str, Any]  # 0-d device arrays by name; float(value) waits for the device


class Backend(Protocol[Models, State]):
    """One instance is made for a run from its config; it owns the devices it computes on."""

    name: str  # "jax" or "torch"
    survives_out_of_memory: bool  # whether it raises OutOfMemory where memory runs out, and can then go on

    def __init__(self, config: Any) -> None: ...

    @staticmethod
    def check(config: Any) -> None:
        """Raise UserError for settings that need other hardware or another package than there is; starts no device."""
        ...

    @staticmethod
    def fit(config: Any, pipeline: PipelineDir, recorded: Mapping[str, Any] | None) -> Any:
        """Return the config with what `memory.fit` chooses; `recorded` is the flat config of a run that is resumed.

        Raise UserError if the run cannot fit.
        """
        ...

    @staticmethod
    def hosts() -> Hosts | None:
        """Join the processes that were started together for one run; None where there is one.

        Called before anything else of the backend. Raise UserError if they do not find each other.
        """
        ...

    def load(self, pipeline: PipelineDir) -> Models:
        """Read all networks of the pipeline and places them: enough to sample and to encode."""
        ...

    def encode_images(self, models: Models, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 [b, H, W, 3] in [-1, 1] -> mean and standard deviation of the VAE posterior, [b, h, w, c] each."""
        ...

    def encode_prompts(self, models: Models, token_ids: np.ndarray) -> np.ndarray:
        """int32 [n, tokens] -> context, float32 [n, tokens, width]."""
        ...

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
        """Initial noise [b, h, w, c] and contexts [b, tokens, width] -> pixels, float32 [b, H, W, 3] in [-1, 1].

        `step_noise`, [b, steps, h, w, c], is what the steps of the table add, if any `needs_noise`.
        All b images are denoised together; they are decoded one by one on each device, so that memory does not grow.
        """
        ...

    def init(self, models: Models, *, training: bool = True) -> State:
        """Trainable tensors, optimizer states and average at step 0. The models' own trained weights may be taken over.

        Without `training` there are no optimizer states and no average: enough to restore weights, sample and export.
        """
        ...

    def models(self, state: State) -> Models:
        """Return the networks with the weights as trained so far, for sampling: their average, if `ema.decay` asks for
        one."""
        ...

    def with_lora_weight(self, state: State, weight: float) -> State:
        """Return the state with its adapters counting `weight` times as much as they were trained to, for sampling.

        The given one may be changed by it; called again with it, a weight takes the place of the one before.
        """
        ...

    def own_rows(self, rows: int) -> Set[int] | None:
        """Return which of a batch's rows this process computes on; None: all. The latents and noise of others may be
        0."""
        ...

    def train_step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """One update, computed in `train.accumulation` pieces; the given state must not be used again.

        Metrics: loss, instance_loss, prior_loss, grad_norm (the global norm before clipping), skipped (1 if the loss or
        a gradient was not finite and nothing was updated, else 0); with loss scaling also loss_scale.
        """
        ...

    def save(self, state: State, folder: Path) -> None:
        """Write trainable tensors, optimizer states and average into an existing empty folder.

        UserError, before anything is written, if a trainable tensor is not finite.
        """
        ...

    def restore(self, state: State, folder: Path) -> State:
        """Return the state saved in `folder`, bit for bit, in the shape and placement of `state` (which is consumed).

        A state without optimizer states gets, as its trainable tensors, the average if there is one, and nothing else.
        """
        ...

    @staticmethod
    def saved_names(folder: Path) -> Collection[str]:
        """`component.name` of the trainable tensors that are saved in `folder`."""
        ...

    def tensors(self, state: State) -> Iterator[tuple[str, str, np.ndarray]]:
        """(component, diffusers name, float32 array in diffusers layout) of everything trained, for export.

        Of the average, if there is one.
        """
        ...


def load_backend(package: str) -> type[Backend[Any, Any]]:
    """Return the Backend class of `jaxbooth` or `torchbooth`; UserError if its framework is not installed."""
    try:
        return importlib.import_module(f"{package}.backend").Backend
    except ImportError as error:
        extra = package.removesuffix("booth")
        raise UserError(
            f"{package} cannot be loaded ({error}); install this project with its [{extra}] extra"
        ) from error


def load_vision(package: str) -> Any:
    """Return the backend's module of the networks that describe pictures, with the classes `Dino` and `Clip`.

    Raise UserError if PyTorch, which computes them for both backends, is not installed.
    """
    try:
        return importlib.import_module(f"{package}.vision")
    except ImportError as error:
        raise UserError(
            f"--dino and --clip need PyTorch ({error}); install it beside JAX: pip install torch"
        ) from error

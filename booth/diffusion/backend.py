"""The whole contract between the core and a backend.

The core (`booth`) decides what happens: which images, which noise, which weights on which rows, when to save. A
backend (`jaxbooth`, `torchbooth`) only computes. Everything that passes between them is NumPy, made by the core, and
equal on both backends to the bit; models and training state belong to the backend and are opaque to the core.
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

Array = Any  # a NumPy array from the core; the framework's own array after a backend has placed the batch


@dataclass(frozen=True)
class Batch:
    """The data of one update: instance rows first, then class rows; float32 unless stated otherwise."""

    latents: Array  # [rows, h, w, c], sampled from the VAE posterior, shifted and scaled
    noise: Array  # [rows, h, w, c]
    timestep: Array  # [rows] int32
    signal: Array  # [rows]: z_t = signal * latents + sigma * noise
    sigma: Array  # [rows]
    target_latent: Array  # [rows]: target = target_latent * latents + target_noise * noise
    target_noise: Array  # [rows]
    weight: Array  # [rows]: loss = sum(weight * mean(mask * error of prediction - target))
    instance_weight: Array  # [rows], the weights in the reported loss of the instance rows
    prior_weight: Array  # [rows], the weights in the reported loss of the class rows, before lambda
    huber_delta: Array  # [rows], > 0: where the error turns from squared to absolute; unused if `loss` is "mse"
    mask: Array  # [rows, h, w, 1]: how much each latent counts, 1 on average; without masks [rows, 1, 1, 1], all 1
    prompt_index: Array  # [rows] int32, into `prompts`
    # The unique prompts: [unique prompts, tokens, width], the text encoder's output; if the text encoder trains, its
    # input: int32 token ids [unique prompts, tokens].
    prompts: Array
    learning_rate: Mapping[str, Array]  # [] for each trained component
    key: Array = 0  # [] an integer below 2**31, new in each update, for stochastic rounding on the device
    loss: str = "mse"  # one of `booth.config.choices.LOSSES`; the same in all updates of a run, so it is compiled in

    def pieces(self, count: int) -> list["Batch"]:
        """Return the batch in `count` pieces with equal numbers of rows of each kind, in any framework's arrays.

        A row's weight refers to the whole batch, so losses and gradients of the pieces are simply added.
        """
        return [
            replace(self, **{name: getattr(self, name)[first::count] for name in ROW_FIELDS}) for first in range(count)
        ]


STATIC_FIELDS = ("loss",)  # not arrays: each value needs its own compiled program
ROW_FIELDS = tuple(
    field.name for field in fields(Batch) if field.name not in ("prompts", "learning_rate", "key", *STATIC_FIELDS)
)

WEIGHT_FIELDS = ("weight", "instance_weight", "prior_weight")  # a row with 0 in all of them counts for nothing


Models = TypeVar("Models")
State = TypeVar("State")
Metrics = dict[str, Any]  # 0-d device arrays by name; float(value) waits for the device


class Backend(Protocol[Models, State]):
    """The computations of one run, made from its config; an instance owns the devices it computes on."""

    name: str  # "jax" or "torch"
    survives_out_of_memory: bool  # whether it raises OutOfMemory if memory runs out, and can continue after that

    def __init__(self, config: Any) -> None: ...

    @staticmethod
    def check(config: Any) -> None:
        """Raise UserError for settings that need hardware or a package that is missing. Start no device."""
        ...

    @staticmethod
    def fit(config: Any, pipeline: PipelineDir, recorded: Mapping[str, Any] | None) -> Any:
        """Return the config with the values that `memory.fit` chooses.

        `recorded` is the flat config of the run that is resumed.

        Raise UserError if the run cannot fit.
        """
        ...

    @staticmethod
    def hosts() -> Hosts:
        """Join the processes that were started together for one run, and return them; `ALONE` if there is only one.

        This is called before anything else of the backend. Raise UserError if the processes do not find each other.
        """
        ...

    def load(self, pipeline: PipelineDir) -> Models:
        """Read all networks of the pipeline and place them on the devices, ready to sample and to encode."""
        ...

    def encode_images(self, models: Models, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of the VAE posterior, [b, h, w, c] each, of float32 [b, H, W, 3] in
        [-1, 1]."""
        ...

    def encode_prompts(self, models: Models, token_ids: np.ndarray) -> np.ndarray:
        """Return the contexts, float32 [n, tokens, width], of int32 [n, tokens]."""
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
        """Return pixels, float32 [b, H, W, 3] in [-1, 1], for initial noise [b, h, w, c] and contexts
        [b, tokens, width].

        `step_noise`, [b, steps, h, w, c], is the noise that the steps of the table add, if any step `needs_noise`.
        All b images are denoised together; each device decodes them one by one, so that memory does not grow.
        """
        ...

    def init(self, models: Models, *, training: bool = True) -> State:
        """Return trainable tensors, optimizer states and average at step 0. The state may take over the trained weights
        of `models`.

        Without `training` there are no optimizer states and no average; that is enough to restore weights, sample and
        export.
        """
        ...

    def models(self, state: State) -> Models:
        """Return the networks with the weights trained so far, for sampling: the average of the weights, if `ema.decay`
        asks for one."""
        ...

    def with_lora_weight(self, state: State, weight: float) -> State:
        """Return the state with its adapters scaled by `weight`, for sampling.

        The given state may be changed. A second call with it replaces the weight of the first.
        """
        ...

    def own_rows(self, rows: int) -> Set[int] | None:
        """Return which of a batch's rows this process computes on, or None for all. The latents and the noise of the
        other rows may be 0."""
        ...

    def train_step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """Compute one update, in `train.accumulation` pieces; the given state must not be used again.

        Metrics: loss, instance_loss, prior_loss, grad_norm (the global norm before clipping), skipped (1 if the loss or
        a gradient was not finite and nothing was updated, else 0); with loss scaling also loss_scale.
        """
        ...

    def save(self, state: State, folder: Path) -> None:
        """Write trainable tensors, optimizer states and average into an existing empty folder.

        Raise UserError, before anything is written, if a trainable tensor is not finite.
        """
        ...

    def restore(self, state: State, folder: Path) -> State:
        """Return the state saved in `folder`, bit for bit, in the shape and placement of `state` (which is consumed).

        A state without optimizer states gets only trainable tensors: those of the average, if there is one.
        """
        ...

    @staticmethod
    def saved_names(folder: Path) -> Collection[str]:
        """Return `component.name` of the trainable tensors that are saved in `folder`."""
        ...

    def tensors(self, state: State) -> Iterator[tuple[str, str, np.ndarray]]:
        """Yield (component, diffusers name, float32 array in diffusers layout) of everything trained, for export.

        The arrays are those of the average, if there is one.
        """
        ...


def load_backend(package: str) -> type[Backend[Any, Any]]:
    """Return the Backend class of `jaxbooth` or `torchbooth`. Raise UserError if its framework is not installed."""
    try:
        return importlib.import_module(f"{package}.backend").Backend
    except ImportError as error:
        extra = package.removesuffix("booth")
        raise UserError(
            f"{package} cannot be loaded ({error}); install this project with its [{extra}] extra"
        ) from error


def load_vision(package: str) -> Any:
    """Return the backend's module with the networks that describe pictures, the classes `Dino` and `Clip`.

    Raise UserError if PyTorch, which computes them for both backends, is not installed.
    """
    try:
        return importlib.import_module(f"{package}.vision")
    except ImportError as error:
        raise UserError(
            f"--dino and --clip need PyTorch ({error}); install it beside JAX: pip install torch"
        ) from error

"""The memory techniques, which make training fit on a small GPU.

| technique                             | setting                         | what it costs                         |
|---------------------------------------|---------------------------------|---------------------------------------|
| activations computed twice            | train.gradient_checkpointing    | a third more work                     |
| networks on the GPU only when in use  | always                          | a copy before and after sampling      |
| optimizer states in 8 bits            | train.optimizer (`optim.py`)    | moments have rounding errors          |
| the update inside the backward pass   | memory.fused_backward           | clipping knows part of the norm       |
| weights in bfloat16                   | memory.weights                  | each update is right on average only  |
| optimizer states in the host's memory | memory.offload_optimizer        | copies at previews, or in each update |
| decoding in tiles                     | memory.vae_tiling               | pictures differ a little              |

`torchbooth.fit` chooses among them, `torchbooth.memory_plan` predicts what they save.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from booth.common.errors import UserError
from booth.config.trained import rate_group
from torchbooth.host_states import HOST, HostStates, movable
from torchbooth.optim import by_component, make_optimizer

log = logging.getLogger("booth")


# Activations


def recompute_activations(network: Any, blocks: Sequence[str] = ()) -> None:
    """Make a network compute its activations again in the backward pass instead of keeping them.

    `blocks` are the names of the blocks to do this in; () for all. Raise UserError for a name that is no such block.
    """
    if not hasattr(network, "enable_gradient_checkpointing"):  # transformers
        # The reentrant kind would need inputs with gradients, and token ids have none. Older versions use the second
        # name.
        enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        return
    network.enable_gradient_checkpointing()
    if blocks:
        known = checkpointable_blocks(network)
        if unknown := sorted(set(blocks) - set(known)):
            raise UserError(
                f"train.checkpointed_blocks: this UNet has no {', '.join(unknown)}; its blocks are {', '.join(known)}"
            )
        for name in set(known) - set(blocks):
            for module in network.get_submodule(name).modules():
                if hasattr(module, "gradient_checkpointing"):
                    module.gradient_checkpointing = False


def checkpointable_blocks(network: Any) -> list[str]:
    """Return the blocks of a diffusers UNet that can compute their activations again: down_blocks.0 and so on."""
    names = [f"{kind}.{index}" for kind in ("down_blocks", "up_blocks") for index in range(len(getattr(network, kind)))]
    return [*names, "mid_block"]


# Networks


# The networks on the device in each phase. Networks that train stay there too, with gradients and optimizer states.
AT_WORK = {
    "encoding prompts": ("text_encoder", "unet", "vae"),  # this needs so little memory that no network has to leave
    "sampling": ("unet", "vae"),
    "encoding images": ("vae",),
    "training": (),
}


class Placement:
    """Keeps networks in the host's memory while they are not used; on a CPU this changes nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def place(self, networks: Mapping[str, Any], work: str) -> None:
        """Put the networks that are `AT_WORK` and those that train on the device, the others in the host's memory."""
        for name, network in networks.items():
            network.to(self._device if name in AT_WORK[work] or trains(network) else HOST)

    def move_states(self, optimizer: torch.optim.Optimizer, *, away: bool) -> None:
        """Move all optimizer states to the host's memory before pictures are made, or back before the next update."""
        for state in optimizer.state.values():
            state.update({key: value.to(HOST if away else self._device) for key, value in movable(state)})


def trains(network: Any) -> bool:
    """Return whether a network has parameters that require gradients."""
    return any(parameter.requires_grad for parameter in network.parameters())


def use_tiles(vae: Any) -> None:
    """Make a VAE decode a picture in tiles of half its side, blended where they overlap.

    This needs a quarter of the memory. Colours can differ a little from tile to tile, since each tile is normalised
    separately.
    """
    side = vae.config.sample_size // 2
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = side, side // 2 ** (len(vae.config.block_out_channels) - 1)


# Weights


def round_stochastically(target: torch.Tensor, values: torch.Tensor, generator: torch.Generator) -> None:
    """Write float32 `values` into the bfloat16 `target`, rounded up or down so that the mean is right.

    Each of the two neighbours is taken with a probability that rises with its nearness (arXiv 2010.06192, section 3):
    16 uniform random bits are added to the 16 that bfloat16 drops. `values` must be contiguous and is overwritten.
    Infinities and NaN stay.
    """
    bits = values.view(torch.int32).view(-1)  # unlike `flatten`, this never copies
    for part in bits.split(2**22):  # random numbers for a whole tensor would double the memory
        part += torch.randint(0, 2**16, part.shape, dtype=torch.int32, device=part.device, generator=generator)
        part &= -(2**16)
    target.copy_(values)


# Optimizer states and gradients


class TensorwiseOptimizer(torch.optim.Optimizer):
    """Updates one tensor after another, each with its own optimizer. So the data that an update needs exist for one
    tensor at a time: a float32 copy of bfloat16 weights, states from the host's memory, and with `fused` the gradient.

    With `fused` the update happens inside the backward pass, as soon as a tensor's gradient is computed; then the
    gradient is freed. The global norm is not known at that time, so clipping uses an estimate: each tensor's gradient
    is multiplied by `max_norm` divided by the greatest of `max_norm`, the last update's global norm, and the norm of
    this update's gradients so far. So no gradient ever exceeds `max_norm`. This equals clipping by the global norm if
    the norm is below `max_norm` or the same in successive updates; the update after an outlier is clipped as strongly
    as the outlier. A loss that is not finite is known before the backward pass, and nothing is updated. If gradients
    become infinite during the backward pass, earlier tensors are updated already; from there on gradients count as 0,
    and weights only move by their moments.
    On the embedded base (200 updates, most of them clipped) losses differ by 0.5 % per step, by 3.6 % at most, and
    those of the last 50 steps by 0.1 % on average.
    """

    def __init__(
        self, trainable: Mapping[str, torch.nn.Parameter], config: Any, wait: Callable[[], None] = lambda: None
    ) -> None:
        """Make the optimizers. `wait` waits until gradients are summed over all processes."""
        groups = [{"params": [parameter], "rate_group": rate_group(name)} for name, parameter in trainable.items()]
        super().__init__(groups, {"lr": config.train.learning_rate})
        self._wait = wait
        self.fused, self._max_norm = config.memory.fused_backward, config.train.max_grad_norm
        device = next(iter(trainable.values())).device
        self._key, self._generator = 0, torch.Generator(device)
        self._squares = torch.zeros((), device=device)  # the sum of squares of this update's gradients so far
        self.last_norm = torch.zeros((), device=device)  # part of a checkpoint
        self.skips = False  # with `fused`, whether this update's gradients are dropped
        self._tensors = {
            parameter: _Tensor(index, parameter, config, self.state, group)
            for index, (parameter, group) in enumerate(zip(trainable.values(), self.param_groups, strict=True))
        }
        self._host = HostStates(device) if config.memory.offload_optimizer == "always" else None
        if self.fused:
            if self._max_norm > 0:
                log.info(
                    "memory.fused_backward=true clips each gradient by the larger of the last update's norm and that"
                    " of this update's gradients so far; without it, train.max_grad_norm=%s limits the norm of all"
                    " (on the embedded base losses differ by 0.5 %% a step)",
                    self._max_norm,
                )
            for parameter in self._tensors:
                parameter.register_post_accumulate_grad_hook(self._update_in_backward)

    @property
    def on_host(self) -> bool:
        """Whether the states are in the host's memory."""
        return self._host is not None

    def begin(self, key: int) -> None:
        """Prepare for an update's backward pass; `key` seeds the rounding of the weights."""
        self._key = key
        self._squares.zero_()

    def end(self) -> torch.Tensor:
        """Finish an update after its backward pass, with `fused`. Return the global norm of its gradients, a scalar."""
        norm = self._squares.sqrt()
        self.last_norm.copy_(torch.where(norm.isfinite(), norm, self.last_norm))
        return norm

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every tensor that has a gradient."""
        for parameter in self._tensors:
            if parameter.grad is not None:
                self._update(parameter)

    @torch.no_grad()
    def _update_in_backward(self, parameter: Any) -> None:
        self._wait()
        norm = torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)
        self._squares += norm * norm
        if self.skips:
            parameter.grad = None
            return
        if self._max_norm > 0:
            greatest = torch.maximum(self._squares.sqrt(), self.last_norm).clamp(min=self._max_norm)
            parameter.grad.mul_(self._max_norm / greatest)
        parameter.grad.nan_to_num_(0.0, 0.0, 0.0)  # weights and moments stay finite
        self._update(parameter)

    def _update(self, parameter: torch.nn.Parameter) -> None:
        tensor = self._tensors[parameter]
        with self._host.fetched(tensor.state) if self._host else nullcontext():
            tensor.update(self._generator, self._key)
        parameter.grad = None

    def optimizer_of(self, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
        """Return the optimizer that has a tensor's states."""
        return self._tensors[parameter].optimizer


class _Tensor:
    """One trained tensor and its optimizer, which shares its states with the optimizer of all tensors."""

    def __init__(
        self, index: int, parameter: torch.nn.Parameter, config: Any, states: dict[Any, Any], group: Mapping[str, Any]
    ) -> None:
        self._index, self._parameter, self._group = index, parameter, group
        # The optimizer works on the tensor itself, or on a float32 copy that exists only during the update.
        self._copied = parameter.dtype != torch.float32
        empty = parameter.detach().new_empty(0, dtype=torch.float32)
        self._work = torch.nn.Parameter(empty) if self._copied else parameter
        self.optimizer = make_optimizer([self._work], config)
        self.state: dict[str, Any] = {}
        self.optimizer.state[self._work] = states[parameter] = self.state

    def update(self, generator: torch.Generator, key: int) -> None:
        group = self.optimizer.param_groups[0]
        group["lr"] = self._group["lr"]
        if not self._copied:
            self._step(group)
            return
        assert self._parameter.grad is not None
        self._work.data = self._parameter.detach().float()
        self._work.grad, self._parameter.grad = self._parameter.grad.float(), None
        self._step(group)
        generator.manual_seed(key << 20 | self._index)  # so the order of the tensors does not matter
        round_stochastically(self._parameter.detach(), self._work.data, generator)
        self._work.data, self._work.grad = self._work.data.new_empty(0), None

    def _step(self, group: dict[str, Any]) -> None:
        optimizer: Any = self.optimizer
        if not hasattr(optimizer, "update_step"):
            optimizer.step()
            return
        # bitsandbytes' own `step` calls these two and then waits for the GPU, which here would be after every tensor.
        if not self.state:
            optimizer.init_state(group, self._work, 0, 0)
        optimizer.update_step(group, self._work, 0, 0)


def make_optimizer_of(
    trainable: Mapping[str, torch.nn.Parameter], config: Any, wait: Callable[[], None] = lambda: None
) -> torch.optim.Optimizer:
    """Return the optimizer of parameters by `component.name`: one for all, unless a technique needs one for each
    tensor."""
    memory = config.memory
    if memory.fused_backward or memory.weights == "bf16" or memory.offload_optimizer == "always":
        return TensorwiseOptimizer(trainable, config, wait)
    return make_optimizer(by_component(trainable), config)

"""The memory techniques: what makes training fit on a small GPU, each of them once.

| technique                             | setting                         | what it costs                         |
|---------------------------------------|---------------------------------|---------------------------------------|
| activations computed twice            | train.gradient_checkpointing    | a third more work                     |
| networks on the GPU while at work     | always                          | a copy before and after sampling      |
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
    """Has a network compute its activations once more in the backward pass instead of keeping them.

    `blocks`: only these, by their names in it; () for all. Raise UserError for a name that is no such block.
    """
    if not hasattr(network, "enable_gradient_checkpointing"):  # transformers
        # Token ids carry no gradient, which the reentrant kind would need. The second name is of older versions.
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


# What is on the device, beside what trains: that stays, since its gradients and optimizer states are there.
AT_WORK = {
    "encoding prompts": ("text_encoder", "unet", "vae"),  # so little is needed that nothing has to make room
    "sampling": ("unet", "vae"),
    "encoding images": ("vae",),
    "training": (),
}


class Placement:
    """Keeps networks in the host's memory while they have nothing to do; on a CPU there is nothing to gain."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def place(self, networks: Mapping[str, Any], work: str) -> None:
        """The networks that are `AT_WORK`, and what trains, are on the device; the others are not."""
        for name, network in networks.items():
            network.to(self._device if name in AT_WORK[work] or trains(network) else HOST)

    def move_states(self, optimizer: torch.optim.Optimizer, *, away: bool) -> None:
        """All optimizer states to the host's memory, before pictures are made, or back, before the next update."""
        for state in optimizer.state.values():
            state.update({key: value.to(HOST if away else self._device) for key, value in movable(state)})


def trains(network: Any) -> bool:
    """Return whether a network has parameters that want gradients."""
    return any(parameter.requires_grad for parameter in network.parameters())


def use_tiles(vae: Any) -> None:
    """Has a VAE decode a picture in tiles of half its side, blended where they overlap.

    A quarter of the memory; colours can differ a little from tile to tile, since each is normalised on its own.
    """
    side = vae.config.sample_size // 2
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = side, side // 2 ** (len(vae.config.block_out_channels) - 1)


# Weights


def round_stochastically(target: torch.Tensor, values: torch.Tensor, generator: torch.Generator) -> None:
    """Write float32 `values` into the bfloat16 `target`, rounded up or down so that the mean is right.

    Of the two neighbours each is taken with the probability of how near it is (arXiv 2010.06192, section 3): 16
    uniform random bits are added to the 16 that bfloat16 drops. `values`, contiguous, is used up. Infinities and NaN
    stay.
    """
    bits = values.view(torch.int32).view(-1)  # `flatten` might copy
    for part in bits.split(2**22):  # random numbers for a whole tensor would need as much memory again
        part += torch.randint(0, 2**16, part.shape, dtype=torch.int32, device=part.device, generator=generator)
        part &= -(2**16)
    target.copy_(values)


# Optimizer states and gradients


class TensorwiseOptimizer(torch.optim.Optimizer):
    """Updates one tensor after the other, each with an optimizer of its own, so that what an update needs of a tensor
    is there for one tensor at a time: a float32 copy of bfloat16 weights, states that live in the host's memory, and
    with `fused` the gradient.

    `fused`: the update happens inside the backward pass, as soon as a tensor's gradient is there; then that is freed.
    The global norm is not known by then, so clipping takes the best that is: each tensor's gradient is scaled by
    `max_norm` over the greatest of `max_norm`, the last update's global norm, and the norm of this update's gradients
    so far. It never lets a gradient through that exceeds `max_norm`; it is clipping by the global norm where that
    stays the same from one update to the next or below `max_norm`; an update after an outlier is clipped as that was.
    A loss that is not finite is known before, and nothing is updated. Where gradients stop being finite on their way
    back, tensors before have been updated; from there on they count as 0, and moments move what they did.
    On the embedded base (200 updates, most of them clipped) losses differ by 0.5 % a step, by 3.6 % at most, and those
    of the last 50 by 0.1 % on average.
    """

    def __init__(
        self, trainable: Mapping[str, torch.nn.Parameter], config: Any, wait: Callable[[], None] = lambda: None
    ) -> None:
        """`wait`: until gradients are those of all processes."""
        groups = [{"params": [parameter], "rate_group": rate_group(name)} for name, parameter in trainable.items()]
        super().__init__(groups, {"lr": config.train.learning_rate})
        self._wait = wait
        self.fused, self._max_norm = config.memory.fused_backward, config.train.max_grad_norm
        device = next(iter(trainable.values())).device
        self._key, self._generator = 0, torch.Generator(device)
        self._squares = torch.zeros((), device=device)  # of this update's gradients so far
        self.last_norm = torch.zeros((), device=device)  # part of a checkpoint
        self.skips = False  # if fused: whether this update's gradients are dropped
        self._tensors = {
            parameter: _Tensor(index, parameter, config, self.state, group)
            for index, (parameter, group) in enumerate(zip(trainable.values(), self.param_groups, strict=True))
        }
        self._host = HostStates(device) if config.memory.offload_optimizer == "always" else None
        if self.fused:
            if self._max_norm > 0:
                log.info(
                    "memory.fused_backward=true clips each gradient by the greatest of the last update's norm and that"
                    " of this one's gradients so far; train.max_grad_norm=%s otherwise means the norm of all of them"
                    " (on the embedded base losses differ by 0.5 %% a step)",
                    self._max_norm,
                )
            for parameter in self._tensors:
                parameter.register_post_accumulate_grad_hook(self._update_in_backward)

    @property
    def on_host(self) -> bool:
        """Whether the states live in the host's memory."""
        return self._host is not None

    def begin(self, key: int) -> None:
        """Before an update's backward pass; `key` decides how its weights are rounded."""
        self._key = key
        self._squares.zero_()

    def end(self) -> torch.Tensor:
        """After an update's backward pass, if fused: the global norm of its gradients, a scalar."""
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
        """Return the one that has a tensor's states."""
        return self._tensors[parameter].optimizer


class _Tensor:
    """One trained tensor and its optimizer, which shares its states with the whole's."""

    def __init__(
        self, index: int, parameter: torch.nn.Parameter, config: Any, states: dict[Any, Any], group: Mapping[str, Any]
    ) -> None:
        self._index, self._parameter, self._group = index, parameter, group
        # What the optimizer works on: the tensor itself, or a float32 copy of it that is there for the update only.
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
        generator.manual_seed(key << 20 | self._index)  # so that the order of the tensors does not matter
        round_stochastically(self._parameter.detach(), self._work.data, generator)
        self._work.data, self._work.grad = self._work.data.new_empty(0), None

    def _step(self, group: dict[str, Any]) -> None:
        optimizer: Any = self.optimizer
        if not hasattr(optimizer, "update_step"):
            optimizer.step()
            return
        # bitsandbytes' own `step` is these two, and then waits for the GPU: after every tensor, here.
        if not self.state:
            optimizer.init_state(group, self._work, 0, 0)
        optimizer.update_step(group, self._work, 0, 0)


def make_optimizer_of(
    trainable: Mapping[str, torch.nn.Parameter], config: Any, wait: Callable[[], None] = lambda: None
) -> torch.optim.Optimizer:
    """Return the optimizer of parameters by `component.name`: one for all, unless a technique wants one for each
    tensor."""
    memory = config.memory
    if memory.fused_backward or memory.weights == "bf16" or memory.offload_optimizer == "always":
        return TensorwiseOptimizer(trainable, config, wait)
    return make_optimizer(by_component(trainable), config)

"""The optimizers, joint clipping, and the loss scaling that float16 needs."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor

from booth.config.trained import rate_group
from torchbooth.sharding import local, placed_as, whole

EIGHT_BIT = ("adamw8bit", "lion8bit")
BITSANDBYTES = (*EIGHT_BIT, "lion")  # the optimizers that need that package

# Entries of a parameter's 8-bit states that all parameters share: lookup tables, which are made anew instead of saved.
SHARED_STATES = {"qmap1": "dynamic", "qmap2": "udynamic"}


def make_optimizer(parameters: Iterable[Any], config: Any) -> torch.optim.Optimizer:
    """Return the optimizer of `train.optimizer` over float32 parameters, or groups of them.

    `adamw`: arXiv 1711.05101. `lion`: arXiv 2302.06675, with its own decays 0.9 and 0.99; it needs a third to a tenth
    of AdamW's learning rate. `adafactor`: arXiv 1804.04235, second moments as row and column means, steps relative to
    each tensor's size, no first moment. `prodigy`: arXiv 2306.06101, its authors' package with Adam's bias correction;
    it finds the rate, and the learning rate is a factor of that. The `8bit` ones (arXiv 2110.02861) keep moments in 8
    bits with a scale for every 256 of them, except those of tensors under 4096 elements. `set_learning_rate` sets
    learning rates.
    """
    train = config.train
    common = {"lr": train.learning_rate, "weight_decay": train.weight_decay}
    adam = {"betas": (train.adam_b1, train.adam_b2), "eps": train.adam_eps}
    if train.optimizer == "adafactor":
        return torch.optim.Adafactor(parameters, **common)
    if train.optimizer == "prodigy":
        from prodigyopt import Prodigy

        prodigy = Prodigy(parameters, train.learning_rate, **adam, use_bias_correction=True)
        for group in prodigy.param_groups:
            group["weight_decay"] = train.weight_decay  # if it were given above, the package would print it
        return prodigy
    if train.optimizer in BITSANDBYTES:
        from bitsandbytes import optim as bitsandbytes

        if train.optimizer == "adamw8bit":
            return bitsandbytes.AdamW8bit(parameters, **common, **adam)
        lion = bitsandbytes.Lion8bit if train.optimizer == "lion8bit" else bitsandbytes.Lion
        return lion(parameters, **common)
    return torch.optim.AdamW(parameters, **common, **adam, fused=True)


def by_component(trainable: Mapping[str, torch.nn.Parameter]) -> list[dict[str, Any]]:
    """Return the parameter groups of parameters by `component.name`, one for each learning rate."""
    groups: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in trainable.items():
        groups.setdefault(rate_group(name), []).append(parameter)
    return [{"params": members, "rate_group": group} for group, members in groups.items()]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: Mapping[str, Any]) -> None:
    """Set each group's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = float(learning_rate[group["rate_group"]])


def clip_by_global_norm(parameters: list[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scale all gradients together to a norm of at most `max_norm` (0: no limit). Return the norm before, a scalar."""
    # One call cannot take both split and whole tensors.
    kinds = [[p for p in parameters if isinstance(p, DTensor) == split] for split in (False, True)]
    kinds = [kind for kind in kinds if kind]
    norms = [_norm([p.grad for p in kind if p.grad is not None]) for kind in kinds]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    if max_norm > 0:
        for kind in kinds:
            torch.nn.utils.clip_grads_with_norm_(kind, max_norm, norm)
    return norm


def _norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Return the norm of all gradients together, a scalar."""
    if all(gradient.dtype == torch.float32 for gradient in gradients):
        return whole(torch.nn.utils.get_total_norm(gradients))
    # PyTorch's own function would add up squares in bfloat16.
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    return torch.linalg.vector_norm(torch.stack(norms))


@torch.no_grad()
def pull(
    trainable: Mapping[str, torch.Tensor],
    anchor: Mapping[str, torch.Tensor],
    shares: Mapping[str, float],
    skipped: torch.Tensor,
) -> None:
    """Move each tensor named in `anchor` towards its anchor, by the share of its group; not if `skipped`, a scalar, is
    1.

    This is L2-SP (arXiv 1802.01483, section 3), a penalty on the distance to the weights before fine-tuning. It is
    decoupled from the gradient as AdamW decouples weight decay (arXiv 1711.05101, section 2). If it were part of the
    loss, Adam would divide it by the gradients' size, so that weights with small gradients would be held the most, and
    clipping would weaken it.
    """
    for name, start in anchor.items():
        local(trainable[name]).lerp_(local(start), shares[rate_group(name)] * (1 - skipped))


def step_if_finite(optimizer: torch.optim.Optimizer, skipped: torch.Tensor) -> None:
    """Make an update, or none at all if `skipped`, a scalar, is 1. The host waits for `skipped`, except with fused
    AdamW."""
    whole_tensors = not any(isinstance(p, DTensor) for group in optimizer.param_groups for p in group["params"])
    if optimizer.defaults.get("fused") and whole_tensors:
        optimizer.found_inf = skipped  # type: ignore[attr-defined]  # as in GradScaler; so the host need not wait for the device
        optimizer.step()
    elif not is_true(skipped):
        optimizer.step()


def is_true(flag: torch.Tensor) -> bool:
    """Return the value of a scalar on the device, for which the host waits; False in a plan, which has no numbers."""
    return not isinstance(flag, FakeTensor) and bool(flag)


def make_loss_scaler(device: torch.device, config: Any) -> torch.amp.GradScaler:
    """Return dynamic loss scaling (arXiv 1710.03740, section 3.2) for fp16; for other precisions it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")


def read_moments(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    """Return the optimizer's states of a parameter, as tensors that share no memory with another parameter's."""
    state = optimizer.state[parameter]
    return {key: whole(torch.as_tensor(value)) for key, value in state.items() if key not in SHARED_STATES}


def write_moments(
    optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, moments: Mapping[str, torch.Tensor]
) -> None:
    """Write the states that `read_moments` returned, to the bit."""
    state = optimizer.state[parameter]
    state.update({key: _laid_out_as(parameter, value) for key, value in moments.items()})
    owner: Any = optimizer.optimizer_of(parameter) if hasattr(optimizer, "optimizer_of") else optimizer
    if "state1" not in state:
        # A fused optimizer counts its steps on the device, the others on the host.
        fused = owner.param_groups[0].get("fused")
        state["step"] = state["step"].to(parameter.device if fused else "cpu")
    else:  # bitsandbytes
        state["step"] = int(state["step"])
        if state["state1"].dtype == torch.uint8:
            tables: dict[str, torch.Tensor] = owner.name2qmap
            for key, table in SHARED_STATES.items():
                if table in tables:
                    tables[table] = state[key] = tables[table].to(parameter.device)


# Prodigy's numbers for all tensors together: Python numbers, the same in each group.
_SHARED_NUMBERS = ("d", "d_max", "d_numerator", "k")


def read_numbers(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimizer's numbers for all parameters together, float64 scalars by name."""
    group = optimizer.param_groups[0]
    return {name: torch.tensor(group[name], dtype=torch.float64) for name in _SHARED_NUMBERS if name in group}


def write_numbers(optimizer: torch.optim.Optimizer, numbers: Mapping[str, torch.Tensor]) -> None:
    """Write the numbers that `read_numbers` returned, to the bit."""
    for group in optimizer.param_groups:
        group.update({name: type(group[name])(value.item()) for name, value in numbers.items()})


def _laid_out_as(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return a value of its parameter's shape split like the parameter, or in the parameter's memory format, so that
    their elements are in the same order in memory."""
    if isinstance(parameter, DTensor):
        return placed_as(value, parameter)
    if parameter.is_contiguous() or (value.shape, value.dtype) != (parameter.shape, parameter.dtype):
        return value
    return torch.empty_like(parameter, device=value.device).copy_(value)

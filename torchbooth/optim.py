"""The optimizers (AdamW, arXiv 1711.05101), joint clipping, and the loss scaling that float16 needs."""

from collections.abc import Mapping
from typing import Any

import torch

# Of a parameter's 8-bit states: lookup tables that all parameters share, made anew instead of saved.
_SHARED = {"qmap1": "dynamic", "qmap2": "udynamic"}


def make_optimizer(trainable: Mapping[str, torch.nn.Parameter], config: Any) -> torch.optim.Optimizer:
    """The optimizer of `train.optimizer` over float32 parameters by `component.name`, a group for each component.

    The learning rates are set anew for every update by `set_learning_rate`. `adamw8bit` (arXiv 2110.02861) keeps the
    moments in 8 bits with a scale for every 256 of them, except those of tensors under 4096 elements.
    """
    groups: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in trainable.items():
        groups.setdefault(name.partition(".")[0], []).append(parameter)
    parameters = [{"params": members, "component": component} for component, members in groups.items()]
    train = config.train
    options = {
        "lr": train.learning_rate,
        "betas": (train.adam_b1, train.adam_b2),
        "eps": train.adam_eps,
        "weight_decay": train.weight_decay,
    }
    if train.optimizer == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, **options)
    return torch.optim.AdamW(parameters, **options, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: Mapping[str, Any]) -> None:
    """Sets each component's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = float(learning_rate[group["component"]])


def clip_by_global_norm(parameters: list[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scales all gradients together to at most `max_norm` (0: leaves them); returns the norm before, a scalar."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def make_loss_scaler(device: torch.device, config: Any) -> torch.amp.GradScaler:
    """Dynamic loss scaling (arXiv 1710.03740, section 3.2) for fp16; for other precisions it passes all through."""
    return torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")


def read_moments(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    """What the optimizer knows about a parameter, as tensors that share no memory with another parameter's."""
    state = optimizer.state[parameter]
    return {key: torch.as_tensor(value) for key, value in state.items() if key not in _SHARED}


def write_moments(
    optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, moments: Mapping[str, torch.Tensor]
) -> None:
    """The inverse of `read_moments`, to the bit."""
    state = optimizer.state[parameter]
    state.update(moments)
    if "state1" in state:  # bitsandbytes
        state["step"] = int(state["step"])
        if state["state1"].dtype == torch.uint8:
            tables: dict[str, torch.Tensor] = optimizer.name2qmap  # type: ignore[attr-defined]
            for key, table in _SHARED.items():
                tables[table] = state[key] = tables[table].to(parameter.device)

"""One update: forward over instance and class rows, the loss, backward, clip, AdamW."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from booth.backend import Batch
from booth.objective import dreambooth_loss, noisy_latents
from torchbooth.models import Models
from torchbooth.optim import clip_by_global_norm, set_learning_rate


@dataclass
class State:
    """`trainable`: the UNet's live parameters by `component.name`; `optimizer`: their moments, None if not training."""

    models: Models
    trainable: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer | None


def train_step(state: State, batch: Batch, config: Any) -> tuple[State, dict[str, torch.Tensor]]:
    """Updates the state's tensors in place; metrics are float32 scalars on the device."""
    assert state.optimizer is not None
    device = next(iter(state.trainable.values())).device
    on_device = to_device(batch, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
        prediction_bchw = state.models.unet(
            noisy_latents(on_device).permute(0, 3, 1, 2),
            on_device.timestep,
            on_device.context[on_device.prompt_index],
            return_dict=False,
        )[0]
    loss, metrics = dreambooth_loss(prediction_bchw.permute(0, 2, 3, 1).float(), on_device)
    loss.backward()
    parameters = list(state.trainable.values())
    metrics["grad_norm"] = clip_by_global_norm(parameters, config.train.max_grad_norm)
    set_learning_rate(state.optimizer, float(batch.learning_rate))
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    return state, {name: value.detach() for name, value in metrics.items()}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch with torch tensors in its fields; the copies overlap with what the device is doing."""
    arrays = {field.name: torch.from_numpy(np.asarray(getattr(batch, field.name))) for field in fields(batch)}
    if device.type == "cuda":
        arrays = {name: array.pin_memory() for name, array in arrays.items()}
    return Batch(**{name: array.to(device, non_blocking=True) for name, array in arrays.items()})  # type: ignore[arg-type]

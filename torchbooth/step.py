"""One update: forward over instance and class rows, the loss, backward, clip, AdamW."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from booth.diffusion.backend import ROW_FIELDS, Batch
from booth.diffusion.objective import dreambooth_loss, noisy_latents
from torchbooth.ema import Average
from torchbooth.memory import TensorwiseOptimizer
from torchbooth.networks import Models
from torchbooth.optim import clip_by_global_norm, is_true, pull, set_learning_rate, step_if_finite
from torchbooth.precision import autocast
from torchbooth.sharding import GradientSum, own_part, sum_metrics


@dataclass
class State:
    """The training state. `trainable` are the live parameters of the trained networks by `component.name`.

    `optimizer` has their moments, and is None if not training. `scaler` is the loss scale, used in fp16 only.
    `gradients` sums them over processes. `forward` is the UNet that updates call, compiled if so set. `average` is the
    average of `trainable`, and `anchor` the weights that `train.pull` pulls towards, by the same names; each may be
    missing.
    """

    models: Models
    trainable: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer | None
    scaler: torch.amp.GradScaler
    gradients: GradientSum
    forward: Any
    average: Average | None = None
    anchor: dict[str, torch.Tensor] = field(default_factory=dict)


def train_step(state: State, batch: Batch, config: Any) -> tuple[State, dict[str, torch.Tensor]]:
    """Update the state's tensors in place; metrics are float32 scalars on the device."""
    optimizer = state.optimizer
    assert optimizer is not None
    fused = optimizer if isinstance(optimizer, TensorwiseOptimizer) and optimizer.fused else None
    set_learning_rate(optimizer, batch.learning_rate)
    if config.adapter.dropout > 0:
        torch.manual_seed(int(batch.key))  # so that dropout is the same in a resumed run
    if isinstance(optimizer, TensorwiseOptimizer):
        optimizer.begin(int(batch.key))
    device = next(iter(state.trainable.values())).device
    encoded, context = encode_for_update(state.models, to_device(batch.prompts, device))
    metrics: dict[str, torch.Tensor] = {}
    pieces = [own_part(piece) for piece in batch.pieces(config.train.accumulation)]
    for index, piece in enumerate(pieces):
        moved: Any = {name: to_device(getattr(piece, name), device) for name in ROW_FIELDS}
        piece = replace(piece, **moved)
        state.gradients.active = index == len(pieces) - 1
        with autocast(context.device, config.train.precision):
            prediction_bchw = state.forward(
                noisy_latents(piece).permute(0, 3, 1, 2),
                piece.timestep,
                context[piece.prompt_index],
                return_dict=False,
            )[0]
        loss, parts = dreambooth_loss(prediction_bchw.permute(0, 2, 3, 1).float(), piece)
        if fused:
            fused.skips = is_true(~sum_metrics({"loss": loss.detach()})["loss"].isfinite())
        state.scaler.scale(loss).backward()
        metrics = {name: metrics.get(name, 0) + value.detach() for name, value in parts.items()}
    if encoded.requires_grad:
        encoded.backward(context.grad)  # for all pieces together: the text encoder runs once per update
    state.gradients.wait()
    metrics = sum_metrics(metrics)

    if fused:
        metrics["grad_norm"] = fused.end()  # the update is complete
        metrics["skipped"] = _skipped(metrics)
        return state, metrics
    state.scaler.unscale_(optimizer)
    parameters = list(state.trainable.values())
    metrics["grad_norm"] = clip_by_global_norm(parameters, config.train.max_grad_norm)
    metrics["skipped"] = _skipped(metrics)
    if state.anchor:
        rates = {group: config.train.pull * float(rate) for group, rate in batch.learning_rate.items()}
        pull(state.trainable, state.anchor, rates, metrics["skipped"])
    if state.scaler.is_enabled():
        metrics["loss_scale"] = state.scaler.scale(torch.ones_like(loss))
        state.scaler.step(optimizer)  # does nothing if a gradient is not finite
        state.scaler.update()
    else:
        step_if_finite(optimizer, metrics["skipped"])
    optimizer.zero_grad(set_to_none=True)
    return state, metrics


def _skipped(metrics: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return 1 if the loss, a gradient or its square is not finite, so that the update is skipped; else 0."""
    return (~(metrics["loss"].isfinite() & metrics["grad_norm"].square().isfinite())).float()


def encode_for_update(models: Models, prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (the text encoder's output, the same as a leaf that collects gradients), [unique prompts, tokens, width].

    If the prompts are encoded already, both are the prompts themselves, without gradients.
    """
    if prompts.ndim == 3:
        return prompts, prompts
    encoded = models.text_encoder(prompts.long())[0]
    return encoded, encoded.detach().requires_grad_()


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return the array as a tensor on the device; the copy overlaps with computations there."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

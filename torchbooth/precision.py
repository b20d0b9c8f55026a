"""The types of computations: `train.precision` for the UNet; float32 for text encoder, VAE and loss."""

from typing import Any

import torch

from booth.common.errors import UserError

_COMPUTE = {"bf16": torch.bfloat16, "fp16": torch.float16}


def weights_dtype(config: Any) -> torch.dtype:
    """Return the type in which the UNet's weights are kept: the compute type if only an adapter trains."""
    if config.adapter.kind == "lora":
        return _COMPUTE.get(config.train.precision, torch.float32)
    return torch.bfloat16 if config.memory.weights == "bf16" else torch.float32


def set_tf32(allowed: bool) -> None:
    """Make float32 products exact, unless TF32 is allowed.

    The setting is for the whole process, including other torch code.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def autocast(device: torch.device, precision: str, *, keep_copies: bool = True) -> torch.autocast:
    """Return a context in which matrix products and convolutions use the compute type; for fp32 it changes nothing.

    `keep_copies` keeps copies of weights in that type until the context ends, instead of converting them each time.
    """
    enabled = precision in _COMPUTE
    return torch.autocast(device.type, _COMPUTE.get(precision), enabled=enabled, cache_enabled=keep_copies)


def check_precision(precision: str) -> None:
    """Raise UserError for fp16 without a GPU."""
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError(
            "train.precision='fp16' needs a GPU: on a CPU float16 is slower and less exact than float32;"
            " use fp32, or bf16"
        )

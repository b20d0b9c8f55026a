"""The packages that a setting needs besides PyTorch."""

import importlib.util
from typing import Any

from booth.common.errors import UserError
from torchbooth import optim


def check_packages(config: Any) -> None:
    """Raise UserError if a setting needs a package that is not installed."""
    if config.adapter.kind == "lora" and importlib.util.find_spec("peft") is None:
        raise UserError(
            "adapter.kind='lora' needs peft: pip install peft, or install this project with its [torch] extra"
        )
    optimizer = config.train.optimizer
    if optimizer in optim.BITSANDBYTES and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"train.optimizer={optimizer!r} needs bitsandbytes: install this project with its [8bit] extra, or use"
            " 'adamw'"
        )
    if optimizer == "prodigy" and importlib.util.find_spec("prodigyopt") is None:
        raise UserError(
            "train.optimizer='prodigy' needs prodigyopt: pip install prodigyopt, or install this project with its"
            " [torch] extra"
        )
    if config.train.attention == "xformers" and importlib.util.find_spec("xformers") is None:
        raise UserError(
            "train.attention='xformers' needs xformers: pip install xformers, or use 'auto', which is PyTorch's own"
        )

"""LoRA through PEFT: adapters put into the networks, named as everywhere else."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from booth.adapters import Adapter

_NAME = "default"  # PEFT's for the only adapter there is


def add(network: Any, layers: Sequence[str], adapter: Adapter) -> None:
    """Puts an adapter into layers of a network, in float32 whatever that is in, with its parameters alone to train."""
    from peft import LoraConfig, inject_adapter_in_model

    settings = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]
        lora_dropout=adapter.dropout,
        target_modules=rf"({'|'.join(map(re.escape, layers))})",
    )
    network.requires_grad_(False)
    inject_adapter_in_model(settings, network)
    for name, parameter in network.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def set_values(parameters: Mapping[str, torch.nn.Parameter], values: Mapping[str, np.ndarray]) -> None:
    """Copies the first values in, by name."""
    for name, parameter in parameters.items():
        parameter.data.copy_(torch.from_numpy(values[name]))


def plain_name(name: str) -> str:
    """A parameter's name without what PEFT adds for the case of several adapters."""
    return name.replace(f".{_NAME}.", ".")

"""LoRA through PEFT: adapters put into the networks, named as everywhere else.

By PEFT's own functions: transformers' `add_adapter` asks for newer versions of it than there may be (5.24 for 0.22).
"""

import re
from collections.abc import Sequence
from typing import Any

from booth.models.adapters import Adapter

_NAME = "default"  # PEFT's for the only adapter there is


def add(network: Any, layers: Sequence[str], adapter: Adapter) -> None:
    """Put an adapter into layers of a network, in float32 whatever that is in."""
    from peft import LoraConfig, inject_adapter_in_model

    settings = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]
        lora_dropout=adapter.dropout,
        target_modules=rf"({'|'.join(map(re.escape, layers))})",
    )
    inject_adapter_in_model(settings, network)
    for name, parameter in network.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()


def set_weight(network: Any, weight: float) -> None:
    """Has a network's adapters count so many times as much as alpha and rank say."""
    from peft.tuners.lora import LoraLayer

    for module in network.modules():
        if isinstance(module, LoraLayer):
            module.set_scale(_NAME, weight)


def without_peft_name(name: str) -> str:
    """Return a parameter's name without what PEFT adds for the case of several adapters."""
    return name.replace(f".{_NAME}.", ".")

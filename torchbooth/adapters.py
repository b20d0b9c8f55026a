"""LoRA through PEFT: adapters in the networks, with the same names as in the rest of the code.

PEFT's own functions are used: transformers' `add_adapter` may require a newer PEFT than is installed (5.24 requires
0.22).
"""

import re
from collections.abc import Sequence
from typing import Any

from booth.models.adapters import Adapter

_NAME = "default"  # PEFT's for the only adapter there is


def add(network: Any, layers: Sequence[str], adapter: Adapter) -> None:
    """Put an adapter into layers of a network. The adapter is in float32, whatever type the network has."""
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
    """Scale a network's adapters by `weight`, in addition to alpha / rank."""
    from peft.tuners.lora import LoraLayer

    for module in network.modules():
        if isinstance(module, LoraLayer):
            module.set_scale(_NAME, weight)


def without_peft_name(name: str) -> str:
    """Return a parameter's name without the part that PEFT adds to distinguish several adapters."""
    return name.replace(f".{_NAME}.", ".")

"""What makes the UNet faster on a GPU and leaves its results the same, but for rounding: memory format, attention,
compilation. Mixed precision and TF32 are in `precision.py`."""

from typing import Any

import torch


def apply(unet: Any, config: Any) -> Any:
    """As `train.channels_last` and `train.attention` say, in place; returns what updates call, compiled or not.

    Pictures are made without the compiled one: it is for one shape, and they come in others.
    """
    train = config.train
    if train.channels_last:
        unet.to(memory_format=torch.channels_last)
    if train.attention == "xformers":
        unet.enable_xformers_memory_efficient_attention()
    if train.compile != "none":
        # One graph for the whole UNet: its shapes are the same in every update.
        return torch.compile(unet, mode=train.compile, dynamic=False)
    return unet

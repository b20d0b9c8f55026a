"""Settings that make the UNet faster on a GPU and change its results only by rounding: memory format, attention,
compilation. Mixed precision and TF32 are in `precision.py`."""

from typing import Any

import torch


def apply(unet: Any, config: Any) -> Any:
    """Apply `train.channels_last` and `train.attention` in place. Return the UNet for updates, compiled if so set.

    Pictures are made without the compiled UNet, which is for one shape: pictures have other shapes.
    """
    train = config.train
    if train.channels_last:
        unet.to(memory_format=torch.channels_last)
    if train.attention == "xformers":
        unet.enable_xformers_memory_efficient_attention()
    if train.compile != "none":
        # The whole UNet is one graph: its shapes are the same in every update.
        return torch.compile(unet, mode=train.compile, dynamic=False)
    return unet

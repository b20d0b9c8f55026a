"""Loads the networks of a pipeline folder as diffusers and transformers modules."""

from dataclasses import dataclass
from typing import Any

import torch

from booth.pipeline_dir import PipelineDir


@dataclass(frozen=True)
class Models:
    """The networks of one pipeline, float32, on one device, in eval mode without gradients."""

    unet: Any  # diffusers UNet2DConditionModel
    vae: Any  # diffusers AutoencoderKL
    text_encoder: Any  # transformers CLIPTextModel


def load(pipeline: PipelineDir, device: torch.device) -> Models:
    """Reads the safetensors weights (never pickles) in float32 and moves them to the device."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    options = {"use_safetensors": True, "local_files_only": True, "variant": pipeline.variant or None}
    modules = {
        # transformers 5 calls the type `dtype` and no longer takes float32 for granted; diffusers has its own name.
        name: cls.from_pretrained(
            pipeline.path / name,
            **{"dtype" if name == "text_encoder" else "torch_dtype": torch.float32},
            **options,
        )
        .to(device)
        .eval()
        .requires_grad_(False)
        for name, cls in classes.items()
    }
    return Models(**modules)

"""The tiny models of each family that the tests compare."""

from collections.abc import Iterator, Mapping
from typing import Any

import diffusers
import jax
import pytest
import torch
import transformers
from make_pipeline import SIZES
from pairs import Pair

from jaxbooth.models import clip, unet, vae

TINY, TINY_SD2 = SIZES["tiny"], SIZES["tiny-sd2"]
SD2_UNET = TINY_SD2["unet"] | {
    # Stable Diffusion 2 has other values, but these are supported and tested nowhere else.
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}


@pytest.fixture(scope="module")
def strict_numerics() -> Iterator[None]:
    with (
        jax.default_matmul_precision("highest"),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        yield


@pytest.fixture(scope="module")
def sd1_unet() -> Pair:
    torch.manual_seed(1)
    reference = diffusers.UNet2DConditionModel(**TINY["unet"])
    return Pair(reference, unet.UNet2DConditionModel, dict(reference.config))


@pytest.fixture(scope="module")
def sd2_unet() -> Pair:
    torch.manual_seed(2)
    reference = diffusers.UNet2DConditionModel(**SD2_UNET)
    return Pair(reference, unet.UNet2DConditionModel, dict(reference.config))


@pytest.fixture(scope="module")
def autoencoder() -> Pair:
    torch.manual_seed(3)
    reference = diffusers.AutoencoderKL(**TINY["vae"])
    return Pair(reference, vae.AutoencoderKL, dict(reference.config))


def make_text_encoder(config: Mapping[str, Any]) -> Pair:
    torch.manual_seed(4)
    reference = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
    return Pair(reference, clip.CLIPTextModel, reference.config.to_dict())


@pytest.fixture(scope="module")
def text_encoder() -> Pair:
    return make_text_encoder(TINY["text_encoder"])


@pytest.fixture(scope="module")
def sd2_text_encoder() -> Pair:
    return make_text_encoder(TINY_SD2["text_encoder"])

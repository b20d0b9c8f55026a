"""jaxbooth's UNet against diffusers', with the same random weights, in float32.

Every check is also run on models with one known mistake, and must reject each of them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from pairs import (
    GRADIENT_TOLERANCE,
    OUTPUT_TOLERANCE,
    Pair,
    from_torch,
    gradient_errors,
    normal,
    output_error,
    to_torch,
)

from booth.common.errors import UserError
from jaxbooth.models import attention, unet
from jaxbooth.weights import Network, from_diffusers

pytestmark = pytest.mark.usefixtures("strict_numerics")

LATENTS, CONTEXT = normal(10, 2, 8, 8, 4), normal(12, 2, 77, 64)
ODD_LATENTS, SD2_CONTEXT = normal(13, 2, 7, 6, 4), normal(14, 2, 77, 96)
TIMESTEPS = np.array([7, 981], np.int32)


def noise_for(latents_bhwc: np.ndarray) -> np.ndarray:
    """What the predictions are compared with where gradients are needed."""
    return normal(11, *latents_bhwc.shape)


def unet_reference(pair: Pair, latents_bhwc: np.ndarray, context_btd: np.ndarray) -> np.ndarray:
    """The prediction; the parameters keep the gradients of its mean squared error."""
    pair.reference.zero_grad()
    prediction = pair.reference(to_torch(latents_bhwc), torch.tensor(TIMESTEPS), torch.tensor(context_btd)).sample
    (prediction - to_torch(noise_for(latents_bhwc))).square().mean().backward()
    return from_torch(prediction)


def make_unet_step(pair: Pair, latents_bhwc: np.ndarray, context_btd: np.ndarray, **build: Any) -> Callable:
    """params -> the prediction, and the gradients of its mean squared error."""
    network = Network.build(pair.model, pair.config, **build)

    def loss(params: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        prediction = network.bind(params)(latents_bhwc, TIMESTEPS, context_btd)
        return jnp.square(prediction - noise_for(latents_bhwc)).mean(), prediction

    @jax.jit
    def step(params: Mapping[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        gradients, prediction = jax.grad(loss, has_aux=True)(params)
        return prediction, gradients

    return step


@pytest.fixture(scope="module")
def sd1_step(sd1_unet: Pair) -> Callable:
    return make_unet_step(sd1_unet, LATENTS, CONTEXT)


@pytest.fixture(scope="module")
def sd1_expected(sd1_unet: Pair) -> np.ndarray:
    return unet_reference(sd1_unet, LATENTS, CONTEXT)


@pytest.fixture(scope="module")
def sd2_expected(sd2_unet: Pair) -> np.ndarray:
    return unet_reference(sd2_unet, ODD_LATENTS, SD2_CONTEXT)


def test_unet_prediction_and_gradients(sd1_unet: Pair, sd1_step: Callable, sd1_expected: np.ndarray) -> None:
    prediction, gradients = sd1_step(sd1_unet.params)
    assert output_error(prediction, sd1_expected) < OUTPUT_TOLERANCE
    errors = gradient_errors(sd1_unet, gradients)
    assert errors.keys() == gradients.keys()  # No parameter of this model has a true gradient of zero.
    assert max(errors.values()) < GRADIENT_TOLERANCE


@pytest.mark.full  # the program again, for what a run with gradient checkpointing shows too
def test_unet_with_remat_is_the_same(sd1_unet: Pair, sd1_expected: np.ndarray) -> None:
    prediction, gradients = make_unet_step(sd1_unet, LATENTS, CONTEXT, remat=True)(sd1_unet.params)
    assert output_error(prediction, sd1_expected) < OUTPUT_TOLERANCE
    assert max(gradient_errors(sd1_unet, gradients).values()) < GRADIENT_TOLERANCE


def test_remat_keeps_less_for_the_backward_pass(sd1_unet: Pair) -> None:
    def kept_bytes(remat: bool) -> int:
        network = Network.build(sd1_unet.model, sd1_unet.config, remat=remat)

        def predict(params: Mapping[str, jax.Array]) -> jax.Array:
            return network.bind(params)(LATENTS, TIMESTEPS, CONTEXT)

        backward = jax.eval_shape(lambda params: jax.vjp(predict, params)[1], network.shapes)
        activations = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))
        return activations - sum(shape.size * shape.dtype.itemsize for shape in network.shapes.values())

    assert 0 < kept_bytes(remat=True) < kept_bytes(remat=False) / 5


def tanh_gelu(patch: pytest.MonkeyPatch) -> None:
    exact = jax.nn.gelu
    patch.setattr(jax.nn, "gelu", lambda x, approximate: exact(x, approximate=True))


def transformer_norm_eps(patch: pytest.MonkeyPatch) -> None:
    norm = attention.GroupNorm
    patch.setattr(attention, "GroupNorm", lambda *args, eps, **kw: norm(*args, eps=1e-5, **kw))


@pytest.mark.parametrize("mutate", [tanh_gelu, transformer_norm_eps])
def test_unet_check_rejects_wrong_model(
    sd1_unet: Pair, sd1_expected: np.ndarray, monkeypatch: pytest.MonkeyPatch, mutate: Callable
) -> None:
    mutate(monkeypatch)
    prediction = sd1_unet.run(unet.UNet2DConditionModel.__call__, LATENTS, TIMESTEPS, CONTEXT)
    assert output_error(prediction, sd1_expected) > OUTPUT_TOLERANCE


@pytest.mark.parametrize(
    "name",
    [
        "time_embedding.linear_2.weight",
        "down_blocks.0.attentions.0.proj_in.weight",
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight",
        "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0.weight",
        "up_blocks.1.resnets.1.conv2.weight",
    ],
)
def test_unet_check_rejects_transposed_weight(
    sd1_unet: Pair, sd1_step: Callable, sd1_expected: np.ndarray, name: str
) -> None:
    transposed = np.swapaxes(sd1_unet.params[name], -1, -2)
    prediction, gradients = sd1_step(sd1_unet.params | {name: transposed})
    assert output_error(prediction, sd1_expected) > OUTPUT_TOLERANCE
    assert max(gradient_errors(sd1_unet, gradients).values()) > GRADIENT_TOLERANCE


@pytest.mark.parametrize(
    "norm",
    [
        "conv_norm_out",
        "down_blocks.1.resnets.0.norm2",
        "mid_block.attentions.0.transformer_blocks.0.norm3",
    ],
)
def test_unet_check_rejects_swapped_norm(
    sd1_unet: Pair, sd1_step: Callable, sd1_expected: np.ndarray, norm: str
) -> None:
    scale, bias = f"{norm}.weight", f"{norm}.bias"
    swapped = {scale: sd1_unet.params[bias], bias: sd1_unet.params[scale]}
    prediction, _ = sd1_step(sd1_unet.params | swapped)
    assert output_error(prediction, sd1_expected) > OUTPUT_TOLERANCE


@pytest.mark.full  # the training of Stable Diffusion 2 shows the rest
def test_sd2_unet_prediction_and_gradients_at_an_odd_size(sd2_unet: Pair, sd2_expected: np.ndarray) -> None:
    """Linear projections, heads and depth by level; an odd height is halved up and cut when doubled."""
    prediction, gradients = make_unet_step(sd2_unet, ODD_LATENTS, SD2_CONTEXT)(sd2_unet.params)
    assert output_error(prediction, sd2_expected) < OUTPUT_TOLERANCE
    errors = gradient_errors(sd2_unet, gradients)
    assert errors.keys() == gradients.keys()
    assert max(errors.values()) < GRADIENT_TOLERANCE


def heads_as_size_of_one(transformer: Callable) -> Callable:
    return lambda channels, heads, **kw: transformer(channels, heads=channels // heads, **kw)


def heads_of_the_first_level(transformer: Callable) -> Callable:
    return lambda channels, heads, **kw: transformer(channels, heads=2, **kw)


@pytest.mark.parametrize(
    "mutate", [heads_as_size_of_one, pytest.param(heads_of_the_first_level, marks=pytest.mark.full)]
)
def test_sd2_unet_check_rejects_wrong_heads(
    sd2_unet: Pair, sd2_expected: np.ndarray, monkeypatch: pytest.MonkeyPatch, mutate: Callable
) -> None:
    monkeypatch.setattr(unet, "Transformer2DModel", mutate(unet.Transformer2DModel))
    prediction = sd2_unet.run(unet.UNet2DConditionModel.__call__, ODD_LATENTS, TIMESTEPS, SD2_CONTEXT)
    assert output_error(prediction, sd2_expected) > OUTPUT_TOLERANCE


def test_linear_projections_do_not_fit_convolutions(sd1_unet: Pair, sd2_unet: Pair) -> None:
    """Convolutions could compute the same: that the config is followed shows in what is refused."""
    convolutions = Network.build(sd2_unet.model, {**sd2_unet.config, "use_linear_projection": False})
    with pytest.raises(UserError, match=r"proj_in\.weight is float32\[64, 64\] instead of float\[64, 64, 1, 1\]"):
        from_diffusers(convolutions, sd2_unet.tensors, "unet")
    linear = Network.build(sd1_unet.model, {**sd1_unet.config, "use_linear_projection": True})
    assert linear.shapes["mid_block.attentions.0.proj_in.weight"].shape == (128, 128)


def test_unet_computes_in_bfloat16(sd1_unet: Pair, sd1_expected: np.ndarray) -> None:
    method = unet.UNet2DConditionModel.__call__
    prediction = sd1_unet.run(method, LATENTS, TIMESTEPS, CONTEXT, dtype=jnp.bfloat16)
    # bfloat16 has 8 significant bits: closer than this it would be float32 after all, farther a mistake.
    assert 1e-3 < output_error(prediction, sd1_expected) < 5e-2

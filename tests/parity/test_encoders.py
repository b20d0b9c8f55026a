"""jaxbooth's VAE and text encoder against diffusers' and transformers', with the same random weights, in float32.

Every check is also run on models with one known mistake, and must reject each of them.
"""

from collections.abc import Callable, Mapping

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from make_pipeline import SIZES
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

from jaxbooth.models import clip, vae

pytestmark = pytest.mark.usefixtures("strict_numerics")
TINY = SIZES["tiny"]

PIXELS = normal(20, 2, 32, 48, 3)
UNSCALED_LATENTS = normal(21, 2, 4, 6, 4) / np.float32(TINY["vae"]["scaling_factor"])


def vae_encode_errors(pair: Pair) -> tuple[float, float]:
    """Of the mean and of the standard deviation."""
    mean, std = pair.run(vae.AutoencoderKL.encode, PIXELS)
    posterior = pair.reference.encode(to_torch(PIXELS)).latent_dist
    return output_error(mean, from_torch(posterior.mean)), output_error(std, from_torch(posterior.std))


def test_vae_encode(autoencoder: Pair) -> None:
    assert max(vae_encode_errors(autoencoder)) < OUTPUT_TOLERANCE


def test_vae_check_rejects_symmetric_padding(autoencoder: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    down = vae.Downsample2D
    monkeypatch.setattr(vae, "Downsample2D", lambda width, padding, **kw: down(width, **kw))
    assert min(vae_encode_errors(autoencoder)) > OUTPUT_TOLERANCE


def test_vae_clamps_the_variance() -> None:
    """To the reference's bounds, which no variance of a random model comes near."""
    moments = np.array([0.5, 0.5, 90, -90], np.float32).reshape(1, 1, 1, 4)
    mean, std = vae.posterior(jnp.array(moments))
    expected = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution(to_torch(moments))
    np.testing.assert_array_equal(mean, from_torch(expected.mean))
    np.testing.assert_allclose(std, from_torch(expected.std), rtol=1e-6)


@pytest.fixture(scope="module")
def vae_decode(autoencoder: Pair) -> Callable:
    return jax.jit(lambda params: autoencoder.network.bind(params).decode(UNSCALED_LATENTS))


@pytest.fixture(scope="module")
def expected_pixels(autoencoder: Pair) -> np.ndarray:
    return from_torch(autoencoder.reference.decode(to_torch(UNSCALED_LATENTS)).sample)


def test_vae_decode(autoencoder: Pair, vae_decode: Callable, expected_pixels: np.ndarray) -> None:
    assert output_error(vae_decode(autoencoder.params), expected_pixels) < OUTPUT_TOLERANCE


def test_vae_check_rejects_transposed_weight(
    autoencoder: Pair, vae_decode: Callable, expected_pixels: np.ndarray
) -> None:
    name = "decoder.mid_block.attentions.0.to_k.weight"
    pixels = vae_decode(autoencoder.params | {name: autoencoder.params[name].T})
    assert output_error(pixels, expected_pixels) > OUTPUT_TOLERANCE


TOKEN_IDS = np.random.default_rng(30).integers(0, 1000, (2, 77)).astype(np.int32)


def text_reference(pair: Pair) -> torch.Tensor:
    return pair.reference(torch.tensor(TOKEN_IDS).long()).last_hidden_state


def text_error(pair: Pair) -> float:
    hidden = pair.run(clip.CLIPTextModel.__call__, TOKEN_IDS)
    return output_error(hidden, text_reference(pair).detach().numpy())


@pytest.mark.parametrize("encoder", ["text_encoder", "sd2_text_encoder"])
def test_text_encoder(request: pytest.FixtureRequest, encoder: str) -> None:
    assert text_error(request.getfixturevalue(encoder)) < OUTPUT_TOLERANCE


@pytest.mark.parametrize("encoder", ["text_encoder", "sd2_text_encoder"])
def test_text_encoder_gradients(request: pytest.FixtureRequest, encoder: str) -> None:
    pair = request.getfixturevalue(encoder)
    expected = text_reference(pair)
    weight = normal(31, *expected.shape)

    @jax.jit
    @jax.grad
    def gradients(params: Mapping[str, jax.Array]) -> jax.Array:
        return (pair.network.bind(params)(TOKEN_IDS) * weight).mean()

    (expected * torch.from_numpy(weight)).mean().backward()
    ours = gradients(pair.params)
    errors = gradient_errors(pair, ours)
    assert max(errors.values()) < GRADIENT_TOLERANCE
    # A bias of all keys alike moves no softmax: the only parameters without a gradient.
    assert {name.rsplit(".", 2)[-2:] == ["k_proj", "bias"] for name in ours.keys() - errors.keys()} == {True}


def other_activation(patch: pytest.MonkeyPatch) -> None:
    gelu, quick_gelu = clip.ACTIVATIONS["gelu"], clip.ACTIVATIONS["quick_gelu"]
    patch.setattr(clip, "ACTIVATIONS", {"gelu": quick_gelu, "quick_gelu": gelu})


def no_causal_mask(patch: pytest.MonkeyPatch) -> None:
    attend_heads = clip.attend_heads
    patch.setattr(clip, "attend_heads", lambda *args, causal: attend_heads(*args))


@pytest.mark.parametrize("mutate", [other_activation, no_causal_mask])
@pytest.mark.parametrize("encoder", ["text_encoder", "sd2_text_encoder"])
def test_text_check_rejects_wrong_model(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, encoder: str, mutate: Callable
) -> None:
    mutate(monkeypatch)
    assert text_error(request.getfixturevalue(encoder)) > OUTPUT_TOLERANCE

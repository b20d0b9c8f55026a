"""jaxbooth's models against diffusers' and transformers', with the same random weights, in float32.

Every check is also run on models with one known mistake, and must reject each of them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from make_pipeline import SIZES

from booth.errors import UserError
from jaxbooth.models import attention, clip, unet, vae
from jaxbooth.weights import Network, from_diffusers, to_diffusers

OUTPUT_TOLERANCE = 5e-6  # of the reference's largest value
GRADIENT_TOLERANCE = 1e-4  # of the norm of the parameter's gradient
ZERO_GRADIENT = 1e-6  # of the norm of all gradients: a reference gradient below this is rounding noise

TINY, TINY_SD2 = SIZES["tiny"], SIZES["tiny-sd2"]
SD2_UNET = TINY_SD2["unet"] | {
    # Not Stable Diffusion 2's, but supported and otherwise untested.
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}


@pytest.fixture(autouse=True, scope="module")
def strict_numerics() -> Iterator[None]:
    with (
        jax.default_matmul_precision("highest"),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        yield


@dataclass
class Pair:
    """A reference module with random weights, and jaxbooth's model of the same config and weights."""

    reference: torch.nn.Module
    model: type[nnx.Module]
    config: Mapping[str, Any]
    tensors: dict[str, np.ndarray] = field(init=False)
    network: Network = field(init=False)
    params: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.reference.parameters():
                if parameter.ndim == 1:  # Norms start at one and zero: a swapped mapping would not show.
                    parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        self.tensors = {
            self.rename(name): tensor.numpy() for name, tensor in self.reference.eval().state_dict().items()
        }
        self.network = Network.build(self.model, self.config)
        self.params = from_diffusers(self.network, self.tensors, "test")

    def rename(self, name: str) -> str:
        """transformers writes a text encoder with the prefix, but builds it without."""
        bare = self.model is clip.CLIPTextModel and not name.startswith("text_model.")
        return f"text_model.{name}" if bare else name

    def run(self, method: Callable, *inputs: Any, **build: Any) -> Any:
        """Compiles and calls a method of the model, built anew so that a patched one counts."""
        network = Network.build(self.model, self.config, **build)
        return jax.jit(lambda params, *inputs: method(network.bind(params), *inputs))(self.params, *inputs)


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


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def to_torch(array_bhwc: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array_bhwc).permute(0, 3, 1, 2)


def from_torch(tensor_bchw: torch.Tensor) -> np.ndarray:
    return tensor_bchw.detach().permute(0, 2, 3, 1).numpy()


def output_error(ours: jax.Array, reference: np.ndarray) -> float:
    assert ours.dtype == jnp.float32
    assert ours.shape == reference.shape
    return float(np.abs(np.asarray(ours) - reference).max() / np.abs(reference).max())


def gradient_errors(pair: Pair, ours: Mapping[str, jax.Array]) -> dict[str, float]:
    """The relative error of each parameter's gradient, where the reference's counts as more than zero."""
    reference = {pair.rename(name): p.grad.numpy() for name, p in pair.reference.named_parameters()}
    assert ours.keys() == reference.keys()
    floor = ZERO_GRADIENT * np.sqrt(sum(np.square(gradient).sum() for gradient in reference.values()))
    errors = {}
    for name, gradient in reference.items():
        mine = to_diffusers(pair.network, name, ours[name])
        if np.linalg.norm(gradient) > floor:
            errors[name] = float(np.linalg.norm(mine - gradient) / np.linalg.norm(gradient))
        else:
            assert np.linalg.norm(mine) < 2 * floor, f"{name} should have no gradient"
    return errors


# ---------------------------------------------------------------------------------------------------- the UNet

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


@pytest.mark.parametrize("mutate", [heads_as_size_of_one, heads_of_the_first_level])
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


# --------------------------------------------------------------------------------------------- the autoencoder

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


# -------------------------------------------------------------------------------------------- the text encoder

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


# ------------------------------------------------------------------------------------------------- the mapping


@pytest.mark.parametrize("model", ["sd1_unet", "sd2_unet", "autoencoder", "text_encoder", "sd2_text_encoder"])
def test_weights_come_back_to_the_bit(request: pytest.FixtureRequest, model: str) -> None:
    pair = request.getfixturevalue(model)
    assert pair.params.keys() == pair.tensors.keys()
    for name, tensor in pair.tensors.items():
        back = to_diffusers(pair.network, name, pair.params[name])
        assert back.dtype == tensor.dtype
        assert back.flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(back.view(np.uint32), tensor.view(np.uint32))

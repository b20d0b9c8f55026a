"""jaxbooth's networks of Stable Diffusion XL against diffusers' and transformers', in float32, with random weights.

Every check is also run with one known mistake, and must reject each of them.
"""

from collections.abc import Callable, Mapping

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
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

from booth.common.errors import UserError
from jaxbooth.models import clip, unet
from jaxbooth.sharding import parameter_spec
from jaxbooth.weights import Network

pytestmark = pytest.mark.usefixtures("strict_numerics")

TINY = SIZES["tiny-sdxl"]
END = TINY["text_encoder_2"]["vocab_size"] - 1
LATENTS, CONTEXT, POOLED = normal(30, 2, 8, 8, 4), normal(31, 2, 77, 160), normal(32, 2, 48)
SIZES_OF_ROWS = np.array([[1365, 833, 0, 117, 1024, 1024], [512, 768, 31, 0, 832, 1216]], np.float32)
TIMESTEPS = np.array([7, 981], np.int32)
NOISE = normal(33, 2, 8, 8, 4)


@pytest.fixture(scope="module")
def sdxl_unet() -> Pair:
    torch.manual_seed(5)
    reference = diffusers.UNet2DConditionModel(**TINY["unet"])
    return Pair(reference, unet.UNet2DConditionModel, dict(reference.config))


@pytest.fixture(scope="module")
def expected(sdxl_unet: Pair) -> np.ndarray:
    """The prediction; the parameters keep the gradients of its mean squared error."""
    added = {"text_embeds": torch.tensor(POOLED), "time_ids": torch.tensor(SIZES_OF_ROWS)}
    prediction = sdxl_unet.reference(
        to_torch(LATENTS), torch.tensor(TIMESTEPS), torch.tensor(CONTEXT), added_cond_kwargs=added
    ).sample
    (prediction - to_torch(NOISE)).square().mean().backward()
    return from_torch(prediction)


@pytest.fixture(scope="module")
def step(sdxl_unet: Pair) -> Callable:
    """(params, pooled, sizes) -> the prediction, and the gradients of its mean squared error."""

    def loss(params: Mapping[str, jax.Array], pooled: jax.Array, sizes: jax.Array) -> tuple[jax.Array, jax.Array]:
        prediction = sdxl_unet.network.bind(params)(LATENTS, TIMESTEPS, CONTEXT, pooled, sizes)
        return jnp.square(prediction - NOISE).mean(), prediction

    @jax.jit
    def step(*arguments: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        gradients, prediction = jax.grad(loss, has_aux=True)(*arguments)
        return prediction, gradients

    return step


def test_prediction_and_gradients(sdxl_unet: Pair, step: Callable, expected: np.ndarray) -> None:
    prediction, gradients = step(sdxl_unet.params, POOLED, SIZES_OF_ROWS)
    assert output_error(prediction, expected) < OUTPUT_TOLERANCE
    assert max(gradient_errors(sdxl_unet, gradients).values()) < GRADIENT_TOLERANCE


@pytest.mark.parametrize("mistake", [
    (POOLED[::-1], SIZES_OF_ROWS), (POOLED, SIZES_OF_ROWS[::-1]), (POOLED, SIZES_OF_ROWS[:, [1, 0, 2, 3, 4, 5]]),
    (POOLED, np.asarray(jnp.asarray(SIZES_OF_ROWS, jnp.bfloat16), np.float32)),
], ids=["pooled of the other row", "sizes of the other row", "width before height", "sizes in bfloat16"])  # fmt: skip
def test_the_check_rejects(sdxl_unet: Pair, step: Callable, expected: np.ndarray, mistake: tuple) -> None:
    assert output_error(step(sdxl_unet.params, *mistake)[0], expected) > OUTPUT_TOLERANCE


def test_other_additions_are_refused() -> None:
    with pytest.raises(UserError, match="addition_embed_type='image' is not supported, only None or 'text_time' is"):
        Network.build(unet.UNet2DConditionModel, TINY["unet"] | {"addition_embed_type": "image"})
    with pytest.raises(UserError, match="addition_time_embed_dim=None is not supported beside addition_embed_type"):
        Network.build(unet.UNet2DConditionModel, TINY["unet"] | {"addition_time_embed_dim": None})


# Text encoders


def token_ids(vocabulary: int, end: int) -> np.ndarray:
    """Two prompts; the second ends early and is filled up with id 0, as the second tokenizer does."""
    ids = np.random.default_rng(6).integers(1, vocabulary - 2, (2, 77)).astype(np.int32)
    ids[0, -1] = end
    ids[1, 5], ids[1, 6:] = end, 0
    return ids


IDS = token_ids(TINY["text_encoder_2"]["vocab_size"], END)


@pytest.fixture(scope="module")
def first_encoder() -> Pair:
    torch.manual_seed(7)
    reference = transformers.CLIPTextModel(transformers.CLIPTextConfig(**TINY["text_encoder"]))
    return Pair(reference, clip.CLIPTextModel, reference.config.to_dict())


class Projecting(clip.CLIPTextModelWithProjection):
    """The model with the end token of the tests, as `Pair` builds a model from its config alone."""

    def __init__(self, config: Mapping, **options: object) -> None:
        super().__init__(config, end_token=END, **options)


@pytest.fixture(scope="module")
def second_encoder() -> Pair:
    torch.manual_seed(8)
    reference = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**TINY["text_encoder_2"]))
    return Pair(reference, Projecting, reference.config.to_dict())


@torch.no_grad()
def states(pair: Pair) -> torch.nn.Module:
    return pair.reference(torch.tensor(IDS).long(), output_hidden_states=True)


def test_the_first_encoder_gives_the_state_before_the_last_layer(first_encoder: Pair) -> None:
    wanted = states(first_encoder)
    ours = first_encoder.run(clip.CLIPTextModel.__call__, IDS, penultimate=True)
    assert output_error(ours, wanted.hidden_states[-2].numpy()) < OUTPUT_TOLERANCE
    normed = first_encoder.run(clip.CLIPTextModel.__call__, IDS)
    assert output_error(normed, wanted.last_hidden_state.numpy()) < OUTPUT_TOLERANCE
    assert output_error(normed, wanted.hidden_states[-2].numpy()) > OUTPUT_TOLERANCE, "the check tells them apart"


def test_the_second_encoder_gives_state_and_pooled_text(second_encoder: Pair) -> None:
    wanted = states(second_encoder)
    context, pooled = second_encoder.run(Projecting.__call__, IDS)
    assert output_error(context, wanted.hidden_states[-2].numpy()) < OUTPUT_TOLERANCE
    assert output_error(pooled, wanted.text_embeds.numpy()) < OUTPUT_TOLERANCE


@pytest.mark.parametrize("mistake", ["last token", "no projection", "no final norm"])
def test_the_check_of_pooled_texts_rejects(second_encoder: Pair, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    if mistake == "last token":
        monkeypatch.setattr(clip.jnp, "argmax", lambda found, axis: jnp.full(len(found), found.shape[1] - 1))
    elif mistake == "no projection":
        monkeypatch.setattr(clip, "Linear", lambda *sizes, bias=True, dtype: _Identity(*sizes, bias=bias, dtype=dtype))
    else:
        monkeypatch.setattr(clip.CLIPTextTransformer, "__call__", lambda self, ids: self.encoder(self.embeddings(ids)))
    _, pooled = second_encoder.run(Projecting.__call__, IDS)
    assert output_error(pooled, states(second_encoder).text_embeds.numpy()) > OUTPUT_TOLERANCE


class _Identity(clip.Linear):
    """A layer without bias passes its input on, cut to its width."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x) if self.bias is not None else x[..., : self.kernel[...].shape[1]]


def test_a_token_that_was_added_later_does_not_move_the_end(second_encoder: Pair) -> None:
    """Its id is the largest, and transformers would pool there, as the config says eos_token_id=2."""
    ids = np.where(np.arange(77) == 3, END, IDS)
    here = second_encoder.run(Projecting.__call__, ids)[1]
    with_later = jax.jit(
        lambda params: Network.build(Projecting, second_encoder.config | {"vocab_size": END + 2}).bind(params)(
            np.where(np.arange(77) == 2, END + 1, ids)
        )
    )
    name = "text_model.embeddings.token_embedding.weight"
    table = np.concatenate([second_encoder.params[name], second_encoder.params[name][ids[0, 2]][None]])
    there = with_later(second_encoder.params | {name: table})[1]
    np.testing.assert_allclose(there[0], here[0], rtol=1e-5)


def test_gradients_of_both(first_encoder: Pair, second_encoder: Pair) -> None:
    """Of the last layer and the final norm of the first there is none: it trains nothing there."""

    def first(params: Mapping[str, jax.Array]) -> jax.Array:
        network = Network.build(clip.CLIPTextModel, first_encoder.config, penultimate=True)
        return jnp.square(network.bind(params)(IDS) - 1).mean()

    def second(params: Mapping[str, jax.Array]) -> jax.Array:
        context, pooled = second_encoder.network.bind(params)(IDS)
        return jnp.square(context - 1).mean() + jnp.square(pooled - 1).mean()

    for pair, loss in ((first_encoder, first), (second_encoder, second)):
        pair.reference.zero_grad()
        out = pair.reference(torch.tensor(IDS).long(), output_hidden_states=True)
        reference = (out.hidden_states[-2] - 1).square().mean()
        if pair is second_encoder:
            reference = reference + (out.text_embeds - 1).square().mean()
        reference.backward()
        for parameter in pair.reference.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        errors = gradient_errors(pair, jax.jit(jax.grad(loss))(pair.params))
        assert max(errors.values()) < GRADIENT_TOLERANCE
        assert ("text_model.final_layer_norm.weight" in errors) == (pair is second_encoder)


def test_every_parameter_has_a_sharding(sdxl_unet: Pair, second_encoder: Pair) -> None:
    for pair in (sdxl_unet, second_encoder):
        split = [name for name, value in pair.params.items() if parameter_spec(name, value.shape, 2)]
        size = sum(value.size for value in pair.params.values())
        assert sum(pair.params[name].size for name in split) > 0.95 * size

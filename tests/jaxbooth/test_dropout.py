"""Dropout of adapters goes with the row, not with its place; pictures are made without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from booth.models.adapters import adapter_of
from booth.models.open import open_pipeline
from jaxbooth import adapters
from jaxbooth.adapters import dropout
from jaxbooth.models.layers import Conv, Linear
from jaxbooth.networks import build
from jaxbooth.sharding import make_mesh

SHARE = 0.25


def keys(*numbers):
    return jax.vmap(lambda number: jax.random.fold_in(jax.random.key(3), number))(jnp.array(numbers))


def test_the_share_and_the_scale():
    x = jnp.full((3, 200, 200), 3.0)
    y = np.asarray(dropout(x, keys(0, 1, 2), SHARE))
    assert set(np.unique(y)) == {0.0, 4.0}
    assert np.mean(y == 0, axis=(1, 2)) == pytest.approx(SHARE, abs=0.01)
    assert np.mean(y[0] == y[1]) == pytest.approx(0.75**2 + 0.25**2, abs=0.01), "rows know nothing of each other"
    assert np.array_equal(y[::-1], dropout(x, keys(2, 1, 0), SHARE))
    assert np.array_equal(y[1:2], dropout(x[1:2], keys(1), SHARE)), "nor of how many there are"


@pytest.mark.parametrize(
    "layer", [Linear(4, 6, dtype=jnp.float32), Conv(4, 6, dtype=jnp.float32)], ids=["linear", "conv"]
)
def test_what_goes_into_an_adapter(layer):
    rng = np.random.default_rng(0)
    adapters.add(layer, 2, 0.5, SHARE)
    for each in (layer, layer.lora_A, layer.lora_B):
        each.kernel.set_value(jnp.array(rng.standard_normal(each.kernel.get_value().shape), jnp.float32))
    layer.bias.set_value(jnp.zeros(6))
    x = jnp.array(rng.standard_normal((2, 8, 8, 4)), jnp.float32)
    plain = layer(x)
    layer.row_keys = keys(5, 6)
    added = layer.lora_scale * layer.lora_B(layer.lora_A(dropout(x, layer.row_keys, SHARE)))
    without = plain - layer.lora_scale * layer.lora_B(layer.lora_A(x))
    np.testing.assert_allclose(layer(x), without + added, atol=1e-5)
    assert np.abs(layer(x) - plain).max() > 0.1


def test_each_layer_has_keys_of_its_own(tiny_config):
    tiny_config.adapter.kind, tiny_config.adapter.dropout = "lora", SHARE
    pipeline, mesh = open_pipeline(tiny_config.model.source), make_mesh(1)
    unet = build(pipeline, mesh, tiny_config, adapter_of(tiny_config, pipeline))["unet"]
    attention = lambda model: model.mid_block.attentions[0].transformer_blocks[0].attn1  # noqa: E731
    bound = attention(unet.bind(unet.shapes, keys(0, 1)))
    drawn = [jax.random.key_data(layer.row_keys) for layer in (bound.to_q, bound.to_k, bound.to_v)]
    assert len({data.tobytes() for data in map(np.asarray, drawn)}) == 3
    assert not hasattr(attention(unet.bind(unet.shapes)).to_q, "row_keys"), "not unless they are given: in pictures"

"""Attention in half precision."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxbooth.models.kernels import plain as attend


def test_logits_and_softmax_are_float32_in_bfloat16() -> None:
    """What `upcast_attention` asks for, always: bfloat16 logits of hundreds, as those models have, are off by one."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(scale * rng.standard_normal((2, 16, 2, 64)), jnp.bfloat16) for scale in (6, 6, 1))
    expected = attend(*(x.astype(jnp.float32) for x in (q, k, v)))
    ours = attend(q, k, v).astype(jnp.float32)

    logits = jnp.einsum("btnd,bsnd->bnts", q, k) / 8  # the mistake
    assert jnp.abs(logits).max() > 100
    halved = jnp.einsum("bnts,bsnd->btnd", jax.nn.softmax(logits, axis=-1), v).astype(jnp.float32)

    assert attend(q, k, v).dtype == jnp.bfloat16
    assert jnp.abs(ours - expected).max() < 0.02  # the result and the weights are rounded to 8 bits
    assert jnp.abs(halved - expected).max() > 0.1

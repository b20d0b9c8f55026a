"""Every way to compute attention gives the same values and gradients."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from booth.common.errors import UserError
from jaxbooth.models import kernels


@pytest.fixture
def inputs():
    """Queries, keys and values [2, 24, 3, 8] or with 20 keys, and the gradient of the output; logits up to about 20."""
    rng = np.random.default_rng(0)
    shapes = ((2, 24, 3, 8), (2, 20, 3, 8), (2, 20, 3, 8), (2, 24, 3, 8))
    return [
        jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)
        for scale, shape in zip((3, 3, 1, 1), shapes, strict=True)
    ]


def _value_and_gradients(attend, q, k, v, d_out):
    @jax.jit
    def both(q, k, v, d_out):
        out, backward = jax.vjp(attend, q, k, v)
        return out, *backward(d_out.astype(out.dtype))

    return [np.asarray(array, np.float32) for array in both(q, k, v, d_out)]


@pytest.mark.parametrize("chunk", [8, 7, 24, 1])  # 7 does not divide 24: chunks of 6
def test_chunks_change_nothing(inputs, chunk, monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK", chunk)
    expected = _value_and_gradients(kernels.plain, *inputs)
    ours = _value_and_gradients(kernels.chunked, *inputs)
    for mine, reference in zip(ours, expected, strict=True):
        assert np.abs(mine - reference).max() <= 2e-6 * np.abs(reference).max()


def test_chunks_in_bfloat16_are_as_near_to_float32_as_plain_is(inputs, monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK", 8)
    exact = _value_and_gradients(kernels.plain, *inputs)
    halved = [array.astype(jnp.bfloat16) for array in inputs]
    plain, chunked = (_value_and_gradients(attend, *halved) for attend in (kernels.plain, kernels.chunked))
    for reference, theirs, ours in zip(exact, plain, chunked, strict=True):
        error = [np.abs(result - reference).mean() for result in (theirs, ours)]
        assert error[1] <= 1.5 * error[0]


def test_wrong_chunks_are_noticed(inputs, monkeypatch):
    """A normaliser that is not the chunk's own, as a lost offset would give."""
    monkeypatch.setattr(kernels, "CHUNK", 8)
    monkeypatch.setattr(kernels, "_put", lambda array, chunk, first: array.at[:, :, : chunk.shape[2]].set(chunk))
    expected = _value_and_gradients(kernels.plain, *inputs)
    ours = _value_and_gradients(kernels.chunked, *inputs)
    assert np.abs(ours[0] - expected[0]).max() > 0.1


def test_memory_of_logits_is_that_of_a_chunk(monkeypatch):
    """The whole logits of 512 queries and keys take 1 MiB, of 64 queries 128 KiB."""
    monkeypatch.setattr(kernels, "CHUNK", 64)
    x = jax.ShapeDtypeStruct((1, 512, 1, 8), jnp.float32)

    def temporaries(attend):
        def loss(q, k, v):
            return attend(q, k, v).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(kernels.chunked) < temporaries(kernels.plain) / 3


def test_splash_is_the_same():
    """In its interpreter: 256 queries, 128 keys, 2 heads of 40 features as in Stable Diffusion 1."""
    rng = np.random.default_rng(0)
    shapes = ((1, 256, 2, 40), (1, 128, 2, 40), (1, 128, 2, 40), (1, 256, 2, 40))
    inputs = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]
    expected = _value_and_gradients(kernels.plain, *inputs)
    ours = _value_and_gradients(partial(kernels.splash, interpret=True), *inputs)
    for mine, reference in zip(ours, expected, strict=True):
        assert np.abs(mine - reference).max() <= 1e-5 * np.abs(reference).max()


def test_lengths_that_splash_has_not_are_chunked(monkeypatch):
    """1600 tokens are the 40x40 of 640 pixels."""
    monkeypatch.setattr(kernels, "splash", lambda *_: "splash")
    monkeypatch.setattr(kernels, "chunked", lambda *_: "chunked")
    for tokens, expected in ((1600, "chunked"), (1024, "splash"), (4096, "splash")):
        x = jax.ShapeDtypeStruct((1, tokens, 8, 40), jnp.bfloat16)
        assert kernels.Kernel("splash")(x, x, x) == expected


def test_short_sequences_are_plain(inputs, monkeypatch):
    q, k, v, _ = inputs
    monkeypatch.setattr(kernels, "chunked", lambda *_: pytest.fail("for long ones"))
    assert jnp.array_equal(kernels.Kernel("chunked")(q, k, v), kernels.plain(q, k, v))
    monkeypatch.setattr(kernels, "LONG", 16)
    with pytest.raises(pytest.fail.Exception, match="for long ones"):
        kernels.Kernel("chunked")(q, k, v)
    kernels.Kernel("chunked")(k, k, v, causal=True)


CPU, V3, V5E = ("cpu", "cpu"), ("tpu", "TPU v3"), ("tpu", "TPU v5 lite")
H100, T4 = ("gpu", "NVIDIA H100 80GB HBM3", "9.0"), ("gpu", "Tesla T4", "7.5")


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        (CPU, jnp.float32, "plain"),
        (V3, jnp.bfloat16, "chunked"),
        (V5E, jnp.bfloat16, "splash"),
        (V5E, jnp.float32, "chunked"),
        (H100, jnp.bfloat16, "cudnn"),
        (H100, jnp.float32, "chunked"),
        (T4, jnp.bfloat16, "chunked"),
    ],
)
def test_auto_is_by_the_device(device, dtype, expected):
    assert _choose("auto", device, dtype).kind == expected


def test_a_kernel_that_the_device_has_not_is_one_line():
    with pytest.raises(UserError, match="'splash' must be 'auto' or one of 'plain', 'chunked' on TPU v3 with"):
        _choose("splash", V3, jnp.bfloat16)
    with pytest.raises(UserError, match=r"'cudnn' must be .* on cpu with train.precision='fp32'"):
        _choose("cudnn", CPU, jnp.float32)


def _choose(kind, device, dtype):
    names = ("platform", "device_kind", "compute_capability")
    return kernels.choose(kind, SimpleNamespace(**dict(zip(names, device, strict=False))), dtype)

"""Attention: softmax(q k^T / sqrt(d)) v (arXiv 1706.03762, equation 1), by the kernel that suits the platform.

    plain    all logits in memory at once                           CPU, and short sequences everywhere
    chunked  flash attention's arithmetic (arXiv 2205.14135) in      TPU v2 and v3; float32 on TPUs and GPUs
             XLA: some queries at a time, and the backward pass
             makes their logits again
    splash   a Pallas kernel whose logits never leave the core       TPU v4 and later, bfloat16
    cudnn    cuDNN's flash attention                                 NVIDIA GPUs from Ampere on, bfloat16

The softmax is in float32 in all of them. The choice of "auto" on TPUs follows the compiler's estimates
(docs/developers/log.md); on GPUs nothing has been measured.

Shape suffixes: b batch, t queries, s keys, n heads, d features of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from booth.common.errors import UserError

LONG = 1024  # from this number of keys on, plain is not the best; SD1's 16x16 level and its 77 tokens have fewer
CHUNK = 512  # queries in a chunk: their logits take 64 MiB per row at 64x64 latents and 8 heads
LANES = 128  # splash takes lengths that are multiples of this
KEPT = "attention"  # names the values that a recomputed block keeps of its attention: output and normaliser, not logits


@dataclass(frozen=True)
class Kernel:
    """One way to compute attention, over the rows of one device.

    With `recompute`, the backward pass of plain attention computes the weights again instead of keeping them.
    """

    kind: str = "plain"
    recompute: bool = False

    def __call__(self, q_btnd: jax.Array, k_bsnd: jax.Array, v_bsnd: jax.Array, *, causal: bool = False) -> jax.Array:
        """Return [b, t, n, d] of float32 or bfloat16 queries, keys and values, in their dtype.

        With `causal` a token sees only itself and earlier ones.
        """
        if self.kind == "plain" or causal or k_bsnd.shape[1] < LONG:
            attend = partial(plain, causal=causal)
            return (jax.checkpoint(attend) if self.recompute else attend)(q_btnd, k_bsnd, v_bsnd)
        if self.kind == "splash" and q_btnd.shape[1] % LANES == k_bsnd.shape[1] % LANES == 0:
            return splash(q_btnd, k_bsnd, v_bsnd)
        if self.kind == "cudnn" and q_btnd.shape[-1] % 8 == 0 and q_btnd.shape[-1] <= 128:
            return jax.nn.dot_product_attention(q_btnd, k_bsnd, v_bsnd, implementation="cudnn")
        return chunked(q_btnd, k_bsnd, v_bsnd)


def choose(kind: str, device: jax.Device, dtype: DTypeLike, *, recompute: bool = False) -> Kernel:
    """Return the kernel of `train.attention` on such a device. Raise UserError if the device does not have it."""
    half = jnp.dtype(dtype) == jnp.bfloat16
    tpu, gpu = device.platform == "tpu", device.platform in ("gpu", "cuda")
    has = {
        "plain": True,
        "chunked": True,
        "splash": tpu and half and device.device_kind not in ("TPU v2", "TPU v3"),
        "cudnn": gpu and half and float(getattr(device, "compute_capability", 0)) >= 8,
    }
    if kind == "auto":
        best = [name for name in ("splash", "cudnn") if has[name]]
        kind = best[0] if best else "chunked" if tpu or gpu else "plain"
    if not has[kind]:
        able = ", ".join(repr(name) for name in has if has[name])
        raise UserError(
            f"train.attention={kind!r} must be 'auto' or one of {able} on {device.device_kind} with"
            f" train.precision={'bf16' if half else 'fp32'!r}"
        )
    return Kernel(kind, recompute)


def plain(q_btnd: jax.Array, k_bsnd: jax.Array, v_bsnd: jax.Array, *, causal: bool = False) -> jax.Array:
    """Compute attention with all logits at once."""
    # Written out, a train step on CPU is 7% faster than with the XLA version of jax.nn.dot_product_attention.
    logits_bnts = jnp.einsum("btnd,bsnd->bnts", q_btnd, k_bsnd, preferred_element_type=jnp.float32)
    logits_bnts *= q_btnd.shape[-1] ** -0.5
    if causal:
        seen_ts = jnp.tri(q_btnd.shape[1], k_bsnd.shape[1], dtype=bool)
        logits_bnts = jnp.where(seen_ts[None, None], logits_bnts, -jnp.inf)
    weights_bnts = jax.nn.softmax(logits_bnts, axis=-1).astype(v_bsnd.dtype)
    return jnp.einsum("bnts,bsnd->btnd", weights_bnts, v_bsnd)


def chunked(q_btnd: jax.Array, k_bsnd: jax.Array, v_bsnd: jax.Array) -> jax.Array:
    """Compute attention for queries in chunks of at most `CHUNK`, one chunk after another."""
    heads_first = (jnp.swapaxes(x, 1, 2) for x in (q_btnd, k_bsnd, v_bsnd))
    return jnp.swapaxes(_chunked(*heads_first), 1, 2)


# In the logits [b, n, s, t] keys come before queries, so that a query's values are the same for a vector of lanes.
_logits = partial(jnp.einsum, "bnsd,bntd->bnst", preferred_element_type=jnp.float32)
_to_queries = partial(jnp.einsum, "bnst,bnsd->bntd", preferred_element_type=jnp.float32)
_to_keys = partial(jnp.einsum, "bnst,bntd->bnsd", preferred_element_type=jnp.float32)


@jax.custom_vjp
def _chunked(q_bntd: jax.Array, k_bnsd: jax.Array, v_bnsd: jax.Array) -> jax.Array:
    return _chunked_forward(q_bntd, k_bnsd, v_bnsd)[0]


def _chunked_forward(q_bntd, k_bnsd, v_bnsd):
    scale = q_bntd.shape[-1] ** -0.5
    # One more feature, always 1, lets the product that weights the values also add up the weights.
    ones_bnsd = jnp.concatenate([v_bnsd, jnp.ones_like(v_bnsd[..., :1])], axis=-1)

    def chunk(i, outputs, q_bntd):
        logits_bnst = _logits(k_bnsd, q_bntd) * scale
        top_bn1t = logits_bnst.max(axis=2, keepdims=True)
        weights_bnst = jnp.exp(logits_bnst - top_bn1t).astype(v_bnsd.dtype)
        summed_bntd = _to_queries(weights_bnst, ones_bnsd)
        total_bnt1 = summed_bntd[..., -1:]
        out_bntd = (summed_bntd[..., :-1] / total_bnt1).astype(v_bnsd.dtype)
        normaliser_bnt = top_bn1t[:, :, 0] + jnp.log(total_bnt1[..., 0])
        return _put(outputs[0], out_bntd, i), _put(outputs[1], normaliser_bnt, i)

    zeros = jnp.zeros(q_bntd.shape, v_bnsd.dtype), jnp.zeros(q_bntd.shape[:3], jnp.float32)
    out_bntd, normaliser_bnt = _over_chunks(chunk, zeros, q_bntd)
    out_bntd, normaliser_bnt = checkpoint_name(out_bntd, KEPT), checkpoint_name(normaliser_bnt, KEPT)
    return out_bntd, (q_bntd, k_bnsd, v_bnsd, out_bntd, normaliser_bnt)


def _chunked_backward(kept, d_out_bntd):
    q_bntd, k_bnsd, v_bnsd, out_bntd, normaliser_bnt = kept
    scale, dtype = q_bntd.shape[-1] ** -0.5, q_bntd.dtype
    drift_bnt = (d_out_bntd.astype(jnp.float32) * out_bntd.astype(jnp.float32)).sum(axis=-1)

    def chunk(i, gradients, q_bntd, d_out_bntd, normaliser_bnt, drift_bnt):
        dq_bntd, dk_bnsd, dv_bnsd = gradients
        weights_bnst = jnp.exp(_logits(k_bnsd, q_bntd) * scale - normaliser_bnt[:, :, None]).astype(dtype)
        # Without the barrier, they would be computed twice, once for each use.
        weights_bnst = jax.lax.optimization_barrier(weights_bnst)
        d_logits_bnst = (weights_bnst * (_logits(v_bnsd, d_out_bntd) - drift_bnt[:, :, None])).astype(dtype)
        dv_bnsd += _to_keys(weights_bnst, d_out_bntd)
        dk_bnsd += _to_keys(d_logits_bnst, q_bntd) * scale
        return _put(dq_bntd, (_to_queries(d_logits_bnst, k_bnsd) * scale).astype(dtype), i), dk_bnsd, dv_bnsd

    zeros_bnsd = jnp.zeros(k_bnsd.shape, jnp.float32)
    gradients = jnp.zeros_like(q_bntd), zeros_bnsd, zeros_bnsd
    dq_bntd, dk_bnsd, dv_bnsd = _over_chunks(chunk, gradients, q_bntd, d_out_bntd, normaliser_bnt, drift_bnt)
    return dq_bntd, dk_bnsd.astype(dtype), dv_bnsd.astype(dtype)


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _over_chunks(function, carry, *arrays):
    """Compute carry = function(first query, carry, *chunks of the arrays [b, n, t, ...]) for every chunk of queries."""
    queries = arrays[0].shape[2]
    size = next(size for size in range(min(CHUNK, queries), 0, -1) if queries % size == 0)

    def body(index, carry):
        first = index * size
        return function(first, carry, *(jax.lax.dynamic_slice_in_dim(array, first, size, axis=2) for array in arrays))

    return jax.lax.fori_loop(0, queries // size, body, carry)


def _put(array, chunk, first):
    return jax.lax.dynamic_update_slice_in_dim(array, chunk, first, axis=2)


def splash(q_btnd: jax.Array, k_bsnd: jax.Array, v_bsnd: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Compute JAX's splash attention with a mask that hides nothing. Lengths must be multiples of 128.

    `interpret` runs it step by step on a CPU, for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    t, s, heads = q_btnd.shape[1], k_bsnd.shape[1], q_btnd.shape[2]
    block_t, block_s = (next(size for size in (512, 256, 128) if length % size == 0) for length in (t, s))
    kernel = kernels.make_splash_mha(
        mask=masks.MultiHeadMask([masks.FullMask((t, s))] * heads),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=KEPT,
        interpret=interpret,
        block_sizes=kernels.BlockSizes(
            block_q=block_t,
            block_kv=block_s,
            block_kv_compute=block_s,
            block_q_dkv=block_t,
            block_kv_dkv=block_s,
            block_kv_dkv_compute=block_s,
            block_q_dq=block_t,
            block_kv_dq=block_s,
        ),
    )

    heads_first = (jnp.swapaxes(x, 1, 2) for x in (q_btnd * q_btnd.shape[-1] ** -0.5, k_bsnd, v_bsnd))
    return jnp.swapaxes(_at_default_precision(jax.vmap(kernel))(*heads_first), 1, 2)


def _at_default_precision(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return the function, forward and backward, with products in the TPU's default precision.

    In other code float32 products are exact (`jaxbooth.precision`). For bfloat16 that setting changes nothing, except
    that it asks a Pallas kernel for a product of bfloat16 operands in float32, which the TPU does not have.
    """

    @jax.custom_vjp
    def run(*operands: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("default"):
            return function(*operands)

    def forward(*operands: jax.Array) -> tuple[jax.Array, Any]:
        with jax.default_matmul_precision("default"):
            return jax.vjp(function, *operands)

    def backward(back: Any, d_out: jax.Array) -> Any:
        with jax.default_matmul_precision("default"):
            return back(d_out)

    run.defvjp(forward, backward)
    return run

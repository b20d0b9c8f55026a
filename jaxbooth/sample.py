"""DDIM sampling with classifier-free guidance (arXiv 2207.12598, eq. 6) over the core's table, jitted."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from booth.schedule import DDIMRule, DDIMTable, ddim_step
from jaxbooth.networks import Models
from jaxbooth.sharding import place_rows, place_shared
from jaxbooth.weights import Network


def sample(
    models: Models,
    mesh: Mesh,
    noise: np.ndarray,
    context: np.ndarray,
    negative_context: np.ndarray,
    table: DDIMTable,
    guidance: float,
) -> np.ndarray:
    """Initial noise [b, h, w, c] and contexts [b, tokens, width] -> pixels, float32 [b, H, W, 3] in [-1, 1]."""
    guided = guidance > 1  # at 1 the negative prompt cancels out
    # Both contexts of an image stay on its device: [b, 1 or 2, tokens, width].
    contexts = np.stack([negative_context, context] if guided else [context], axis=1)
    latents = _denoise(
        models.of("unet"),
        place_rows(mesh, noise),
        place_rows(mesh, contexts),
        tuple(place_shared(mesh, column) for column in table.columns),
        np.float32(guidance),
        unet=models.unet,
        rule=table.rule,
    )
    pixels = _decode(models.of("vae"), latents / models.vae_scale + models.vae_shift, vae=models.vae)
    return np.asarray(pixels)[: len(noise)]


@partial(jax.jit, static_argnames=("unet", "rule"))
def _denoise(
    params: dict[str, jax.Array],
    noise_bhwc: jax.Array,
    contexts_bktd: jax.Array,
    columns: tuple[jax.Array, ...],
    guidance: jax.Array,
    *,
    unet: Network,
    rule: DDIMRule,
) -> jax.Array:
    b, k = contexts_bktd.shape[:2]
    contexts_rtd = contexts_bktd.reshape(b * k, *contexts_bktd.shape[2:])

    def step(latents_bhwc: jax.Array, row: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        model = unet.bind(params)  # inside the loop's body: a module belongs to the trace it is called in
        rows = jnp.repeat(latents_bhwc, k, axis=0)
        timesteps = jnp.full(b * k, row[0])
        prediction = model(rows, timesteps, contexts_rtd).astype(jnp.float32).reshape(b, k, *rows.shape[1:])
        if k == 2:
            negative, positive = prediction[:, 0], prediction[:, 1]
            combined = negative + guidance * (positive - negative)
        else:
            combined = prediction[:, 0]
        return ddim_step(rule, latents_bhwc, combined, row), None

    return jax.lax.scan(step, noise_bhwc, columns)[0]


@partial(jax.jit, static_argnames="vae")
def _decode(params: dict[str, jax.Array], latents_bhwc: jax.Array, *, vae: Network) -> jax.Array:
    return vae.bind(params).decode(latents_bhwc)

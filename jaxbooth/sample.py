"""The networks' work besides training: sampling with classifier-free guidance (arXiv 2207.12598, eq. 6) over the core's
table, step by step, and encoding; everything is jitted."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from booth.diffusion.solvers import HISTORY, History, SamplingStep, SamplingTable, is_guided, solver_step
from jaxbooth.networks import Models
from jaxbooth.sharding import (
    fetch,
    gathered,
    over_rows,
    parameter_specs,
    place_rows,
    place_shared,
    row_spec,
    shared_sharding,
)
from jaxbooth.weights import Network


def sample(
    models: Models,
    mesh: Mesh,
    noise: np.ndarray,
    context: np.ndarray,
    negative_context: np.ndarray,
    table: SamplingTable,
    guidance: float,
    step_noise: np.ndarray | None = None,
) -> np.ndarray:
    """Return pixels, float32 [b, H, W, 3] in [-1, 1], for initial noise [b, h, w, c] and contexts [b, tokens, width].

    `step_noise` [b, steps, h, w, c] is the noise that each step may add.
    """
    # Both contexts of an image are on its device: [b, 1 or 2, tokens, width].
    contexts = place_rows(mesh, np.stack([negative_context, context] if is_guided(guidance) else [context], axis=1))
    unet = models.of("unet")
    latents, nothing = place_rows(mesh, noise), place_rows(mesh, np.zeros_like(noise))
    history: History = (nothing,) * HISTORY
    for place, step in enumerate(table):
        fresh = nothing if step_noise is None else place_rows(mesh, step_noise[:, place])
        latents, history = _denoise(
            unet, latents, history, fresh, contexts, step, guidance, unet=models.unet, mesh=mesh
        )
    decodable = fetch(latents)[: len(noise)] / models.vae_scale + models.vae_shift
    # Each device decodes one image at a time: decoding needs the most memory, and larger batches are hardly faster.
    vae, at_once = models.of("vae"), mesh.size
    parts = [place_rows(mesh, decodable[first : first + at_once]) for first in range(0, len(noise), at_once)]
    return np.concatenate([fetch(_decode(vae, part, vae=models.vae, mesh=mesh)) for part in parts])[: len(noise)]


# This is one step, not a loop over all: one compilation serves every solver and number of steps, and the compiler
# cannot keep values that all steps need (gathered or cast weights) in memory during the whole loop.
@partial(jax.jit, static_argnames=("unet", "mesh"))
def _denoise(
    params: dict[str, jax.Array],
    latents_bhwc: jax.Array,
    history: History,
    noise_bhwc: jax.Array,
    contexts_bktd: jax.Array,
    step: SamplingStep,
    guidance: float,
    *,
    unet: Network,
    mesh: Mesh,
) -> tuple[jax.Array, History]:
    specs, rows = parameter_specs(mesh, params), row_spec()
    step_over_rows = over_rows(
        mesh, partial(_denoise_rows, specs=specs, unet=unet), (specs, rows, rows, rows, rows, P(), P()), (rows, rows)
    )
    return step_over_rows(params, latents_bhwc, history, noise_bhwc, contexts_bktd, step, guidance)


def _denoise_rows(
    params: dict[str, jax.Array],
    latents_bhwc: jax.Array,
    history: History,
    noise_bhwc: jax.Array,
    contexts_bktd: jax.Array,
    step: SamplingStep,
    guidance: float,
    *,
    specs: dict[str, P],
    unet: Network,
) -> tuple[jax.Array, History]:
    """Compute one step on the images of one device."""
    b, k = contexts_bktd.shape[:2]
    x = step.scale * latents_bhwc
    rows = jnp.repeat(x, k, axis=0)
    contexts_rtd = contexts_bktd.reshape(b * k, *contexts_bktd.shape[2:])
    prediction = unet.bind(gathered(params, specs, unet.dtype))(rows, jnp.full(b * k, step.timestep), contexts_rtd)
    prediction = prediction.astype(jnp.float32).reshape(b, k, *rows.shape[1:])
    if k == 2:
        negative, positive = prediction[:, 0], prediction[:, 1]
        combined = negative + guidance * (positive - negative)
    else:
        combined = prediction[:, 0]
    return solver_step(step, x, history, combined, noise_bhwc)


@partial(jax.jit, static_argnames=("vae", "mesh"))
def _decode(params: dict[str, jax.Array], latents_bhwc: jax.Array, *, vae: Network, mesh: Mesh) -> jax.Array:
    # If devices share the weights, the weights are gathered (0.2 GiB). The compiler by itself would gather the images
    # and split their channels, which takes seven times the memory.
    params = jax.lax.with_sharding_constraint(params, shared_sharding(mesh))
    return vae.bind(params).decode(latents_bhwc)


def encode(models: Models, mesh: Mesh, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of the VAE's posterior, float32 [b, h, w, c], of pixels [b, H, W, 3] in
    [-1, 1]."""
    moments = _encode(models.of("vae"), place_rows(mesh, pixels), vae=models.vae)
    mean, std = (fetch(part)[: len(pixels)] for part in moments)
    return mean, std


@partial(jax.jit, static_argnames="vae")
def _encode(params: dict[str, jax.Array], pixels: jax.Array, *, vae: Network) -> tuple[jax.Array, jax.Array]:
    return vae.bind(params).encode(pixels)


def encode_prompts(models: Models, mesh: Mesh, token_ids: np.ndarray) -> np.ndarray:
    """Return the contexts, float32 [b, tokens, width], of [b, tokens].

    Stable Diffusion trains and samples without an attention mask: padding tokens are part of the context.
    """
    placed = place_shared(mesh, token_ids)
    return fetch(_encode_prompts(models.of("text_encoder"), placed, text_encoder=models.text_encoder))


@partial(jax.jit, static_argnames="text_encoder")
def _encode_prompts(params: dict[str, jax.Array], token_ids: jax.Array, *, text_encoder: Network) -> jax.Array:
    return text_encoder.bind(params)(token_ids)

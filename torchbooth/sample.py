"""The networks' work besides training: sampling with classifier-free guidance (arXiv 2207.12598, eq. 6) over the core's
table, and encoding."""

import numpy as np
import torch

from booth.diffusion.solvers import HISTORY, History, SamplingTable, is_guided, solver_step
from torchbooth.networks import Models
from torchbooth.precision import autocast


def sample(
    models: Models,
    noise: np.ndarray,
    context: np.ndarray,
    negative_context: np.ndarray,
    table: SamplingTable,
    guidance: float,
    precision: str,
    step_noise: np.ndarray | None = None,
) -> np.ndarray:
    """Return pixels, float32 [b, H, W, 3] in [-1, 1], for initial noise [b, h, w, c] and contexts [b, tokens, width].

    `step_noise` [b, steps, h, w, c] is the noise that each step may add.
    """
    contexts = np.concatenate([negative_context, context]) if is_guided(guidance) else context
    latents_bchw = torch.from_numpy(noise).permute(0, 3, 1, 2)
    fresh = None if step_noise is None else torch.from_numpy(step_noise).permute(1, 0, 4, 2, 3)
    latents_bchw = denoise(models, latents_bchw, torch.from_numpy(contexts), table, guidance, precision, fresh)
    return decode(models, latents_bchw).permute(0, 2, 3, 1).numpy()


@torch.no_grad()  # FSDP cannot gather weights in inference mode
def denoise(
    models: Models,
    noise_bchw: torch.Tensor,
    contexts_rtd: torch.Tensor,
    table: SamplingTable,
    guidance: float,
    precision: str,
    step_noise_sbchw: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return clean latents [b, c, h, w]. `contexts_rtd` has a row for each image; with guidance, b negative rows come
    first."""
    device, guided = models.unet.device, len(contexts_rtd) > len(noise_bchw)
    latents, contexts_rtd = noise_bchw.to(device), contexts_rtd.to(device)
    nothing = torch.zeros_like(latents)
    history: History = (nothing,) * HISTORY
    with autocast(device, precision, keep_copies=False):  # so that previews need no more memory than training
        for place, step in enumerate(table):
            x = step.scale * latents
            rows = torch.cat([x, x]) if guided else x
            prediction = models.unet(rows, step.timestep, contexts_rtd, return_dict=False)[0].float()
            if guided:
                negative, positive = prediction.chunk(2)
                prediction = negative + guidance * (positive - negative)
            fresh = nothing if step_noise_sbchw is None else step_noise_sbchw[place].to(device)
            latents, history = solver_step(step, x, history, prediction, fresh)
    return latents


@torch.inference_mode()
def decode(models: Models, latents_bchw: torch.Tensor) -> torch.Tensor:
    """Return pixels, float32 [b, 3, H, W] in the host's memory.

    Images are decoded one at a time: decoding needs the most memory, and larger batches are hardly faster.
    """
    latents_bchw = latents_bchw / models.vae_scale + models.vae_shift
    return torch.cat([models.vae.decode(one, return_dict=False)[0].float().cpu() for one in latents_bchw.split(1)])


@torch.inference_mode()
def encode(models: Models, pixels_bchw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of the VAE's posterior, float32 [b, c, h, w], of pixels in [-1, 1]."""
    tiling, models.vae.use_tiling = models.vae.use_tiling, False  # training images are never encoded in tiles
    posterior = models.vae.encode(pixels_bchw.to(models.vae.device)).latent_dist
    models.vae.use_tiling = tiling
    return posterior.mean, posterior.std


@torch.inference_mode()
def encode_prompts(models: Models, token_ids: torch.Tensor) -> torch.Tensor:
    """Return the contexts, float32 [b, tokens, width], of [b, tokens].

    Stable Diffusion trains and samples without an attention mask: padding tokens are part of the context.
    """
    context: torch.Tensor = models.text_encoder(token_ids.long().to(models.text_encoder.device))[0]
    return context

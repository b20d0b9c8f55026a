"""Sampling with classifier-free guidance (arXiv 2207.12598, eq. 6) over the core's table."""

import numpy as np
import torch

from booth.solvers import SamplingTable, is_guided, solver_step
from torchbooth.models import Models


@torch.inference_mode()
def sample(
    models: Models,
    noise: np.ndarray,
    context: np.ndarray,
    negative_context: np.ndarray,
    table: SamplingTable,
    guidance: float,
    precision: str,
) -> np.ndarray:
    """Initial noise [b, h, w, c] and contexts [b, tokens, width] -> pixels, float32 [b, H, W, 3] in [-1, 1]."""
    device = models.unet.device
    latents = torch.from_numpy(noise).to(device).permute(0, 3, 1, 2)
    clean = torch.zeros_like(latents)
    guided = is_guided(guidance)
    contexts = torch.from_numpy(np.concatenate([negative_context, context]) if guided else context).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for step in table:
            rows = torch.cat([latents, latents]) if guided else latents
            prediction = models.unet(rows, step.timestep, contexts, return_dict=False)[0].float()
            if guided:
                negative, positive = prediction.chunk(2)
                prediction = negative + guidance * (positive - negative)
            latents, clean = solver_step(step, latents, clean, prediction)
    decodable = latents / models.vae_scale + models.vae_shift
    # One image at once: decoding is where most memory is needed, and little is gained by more.
    images = [models.vae.decode(one, return_dict=False)[0].float().cpu() for one in decodable.split(1)]
    return torch.cat(images).permute(0, 2, 3, 1).numpy()

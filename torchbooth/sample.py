"""DDIM sampling with classifier-free guidance (arXiv 2207.12598, eq. 6) over the core's table."""

import numpy as np
import torch

from booth.schedule import DDIMTable, ddim_step
from torchbooth.models import Models
from torchbooth.precision import autocast


@torch.inference_mode()
def sample(
    models: Models,
    noise: np.ndarray,
    context: np.ndarray,
    negative_context: np.ndarray,
    table: DDIMTable,
    guidance: float,
    precision: str,
) -> np.ndarray:
    """Initial noise [b, h, w, c] and contexts [b, tokens, width] -> pixels, float32 [b, H, W, 3] in [-1, 1]."""
    device = models.unet.device
    latents = torch.from_numpy(noise).to(device).permute(0, 3, 1, 2)
    guided = guidance > 1  # at 1 the negative prompt cancels out
    contexts = torch.from_numpy(np.concatenate([negative_context, context]) if guided else context).to(device)
    with autocast(device, precision):
        for row in zip(*(column.tolist() for column in table.columns), strict=True):
            rows = torch.cat([latents, latents]) if guided else latents
            prediction = models.unet(rows, row[0], contexts, return_dict=False)[0].float()
            if guided:
                negative, positive = prediction.chunk(2)
                prediction = negative + guidance * (positive - negative)
            latents = ddim_step(table.rule, latents, prediction, row)
    pixels = models.vae.decode(latents / models.vae_scale + models.vae_shift, return_dict=False)[0]
    return pixels.permute(0, 2, 3, 1).float().cpu().numpy()

"""The base's autoencoder: pictures <-> latents of a quarter of their side, in 4 channels."""

from collections.abc import Iterator

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn.functional import avg_pool2d
from tqdm import trange

from base_training.optimization import optimizer, rows_of_step

CONFIG = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (16, 32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "act_fn": "silu",
}
BATCH, PEAK_RATE = 32, 2e-3
OBJECT_WEIGHT = 3.0  # what a pixel of an object counts more than one of the setting, when the decoder is polished
KL_WEIGHT = 1e-3  # of the mean over latents: keeps them near a unit normal, smooth enough for a small UNet


def train_autoencoder(pictures: np.ndarray, steps: int, seed: int) -> AutoencoderKL:
    """An autoencoder trained on uint8 [n, h, w, 3], whose scaling_factor gives latents a standard deviation of 1."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(**CONFIG).train()
    adam, schedule = optimizer(vae.parameters(), PEAK_RATE, steps, weight_decay=0.0)
    with trange(steps, desc="autoencoder", unit="step") as progress:
        for step in progress:
            pixels = to_pixels(pictures[rows_of_step(len(pictures), BATCH, step, seed)])
            with torch.autocast("cpu", torch.bfloat16):
                posterior = vae.encode(pixels).latent_dist
                decoded = vae.decode(posterior.sample()).sample
            error = _picture_error(decoded.float(), pixels)
            loss = error + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            adam.step()
            schedule.step()
            if step % 50 == 0:
                progress.set_postfix_str(f"error {error:.4f}, {psnr(decoded.float(), pixels):.2f} dB")
    vae.eval()
    latents = torch.cat([mean for mean, _ in encode(vae, pictures[:1024])])
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    return vae


def polish_decoder(
    vae: AutoencoderKL, pictures: np.ndarray, masks: np.ndarray, moments: np.ndarray, steps: int, seed: int
) -> None:
    """Train the decoder alone, in place: latents stay what they are, objects are drawn sharper.

    `masks` uint8 [n, h, w] are the objects' shares of the pixels; `moments` float16 [2, n, 4, h, w] the means and
    standard deviations of the scaled posteriors.
    """
    torch.manual_seed(seed)
    vae.requires_grad_(False)
    decoder = torch.nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True).train()
    adam, schedule = optimizer(decoder.parameters(), PEAK_RATE / 2, steps, weight_decay=0.0)
    with trange(steps, desc="decoder", unit="step") as progress:
        for step in progress:
            rows = rows_of_step(len(masks), BATCH, step, seed + 1)
            pixels = to_pixels(pictures[rows])
            weight = 1 + OBJECT_WEIGHT * torch.from_numpy(masks[rows])[:, None].float() / 255
            mean, std = (torch.from_numpy(part[rows]).float() / vae.config.scaling_factor for part in moments)
            with torch.autocast("cpu", torch.bfloat16):
                decoded = vae.decode(mean + std * torch.randn_like(std)).sample
            error = _picture_error(decoded.float(), pixels, weight)
            adam.zero_grad()
            error.backward()
            torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
            adam.step()
            schedule.step()
            if step % 50 == 0:
                progress.set_postfix_str(f"error {error:.4f}, {psnr(decoded.float(), pixels):.2f} dB")
    vae.requires_grad_(True).eval()


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray, batch: int = 64) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Mean and standard deviation of the posterior, float32 [b, 4, h/4, w/4] each, batch by batch."""
    for start in range(0, len(pictures), batch):
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(to_pixels(pictures[start : start + batch])).latent_dist
        yield posterior.mean.float(), posterior.std.float()


def to_pixels(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [b, h, w, 3] -> float32 [b, 3, h, w] from -1 to 1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def psnr(decoded: torch.Tensor, pixels: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in decibels, of values from -1 to 1."""
    return float(-10 * torch.log10(((decoded.clamp(-1, 1) - pixels) / 2).square().mean()))


def _picture_error(decoded: torch.Tensor, pixels: torch.Tensor, weight: torch.Tensor | float = 1.0) -> torch.Tensor:
    """L1 at three scales, and of the differences between neighbours: edges count beside areas."""
    error = (decoded - pixels) * weight
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + 0.5 * edges + sum(avg_pool2d(error, n).abs().mean() for n in (2, 4))

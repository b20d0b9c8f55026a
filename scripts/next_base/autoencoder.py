"""The autoencoder of the next base: between pictures and latents of a quarter of their side with 8 channels.

Pictures are uint8 [n, h, w, 4]; the last channel is the object's share of each pixel.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from base_training.optimization import best_device, optimizer, rows_of_step
from diffusers import AutoencoderKL
from torch.nn.functional import avg_pool2d
from tqdm import tqdm

CONFIG = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 8,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (16, 48, 96),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "act_fn": "silu",
    "mid_block_add_attention": False,
}
BATCH, PEAK_RATE, EMA_DECAY, SAVE_EVERY = 16, 2e-3, 0.998, 200
OBJECT_WEIGHT = 2.0  # extra weight of an object's pixels: settings are plain
KL_WEIGHT = 3e-4  # for the mean over latents; keeps them near a unit normal, smooth enough for a small UNet


def train_autoencoder(
    pictures: np.ndarray, steps: int, seed: int, checkpoint: Path, look: Callable[[int, AutoencoderKL], None]
) -> AutoencoderKL:
    """Return the moving average of a trained autoencoder, whose scaling_factor gives latents a deviation of 1.

    Every `SAVE_EVERY` steps the state is written to `checkpoint`, from which an interrupted training continues, and
    `look(step, average)` is called.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKL(**CONFIG).to(best_device()).train()
    average = torch.optim.swa_utils.AveragedModel(
        vae, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_DECAY)
    ).eval()
    adam, schedule = optimizer(vae.parameters(), PEAK_RATE, [steps], weight_decay=0.0)
    parts = {"vae": vae, "average": average, "adam": adam, "schedule": schedule}
    start = 0
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True, map_location=vae.device)
        start = saved.pop("step")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    with tqdm(total=steps, initial=start, desc="autoencoder", unit="step") as progress:
        for step in range(start, steps):
            rows = rows_of_step(len(pictures), BATCH, step, seed, "autoencoder")
            loss = _loss(vae, pictures[rows], torch.Generator().manual_seed(seed * 1_000_003 + step))
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            adam.step()
            schedule.step()
            average.update_parameters(vae)
            progress.update()
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
                staging = checkpoint.with_suffix(".new")
                torch.save({"step": step + 1, **{name: part.state_dict() for name, part in parts.items()}}, staging)
                staging.replace(checkpoint)
                look(step + 1, average.module)
    vae = average.module
    latents = torch.cat([mean for mean, _ in encoded(vae, pictures[:1024])])
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    return vae


def _loss(vae: AutoencoderKL, pictures: np.ndarray, rng: torch.Generator) -> torch.Tensor:
    pixels = to_pixels(pictures).to(vae.device)
    weight = 1 + OBJECT_WEIGHT * torch.from_numpy(pictures[..., 3]).to(vae.device)[:, None].float() / 255
    with torch.autocast(vae.device.type, torch.bfloat16):
        posterior = vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=rng).to(vae.device)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample.float()
    kl = posterior.kl().float().mean() / posterior.mean[0].numel()
    return _picture_error(decoded - pixels, weight) + KL_WEIGHT * kl


def _picture_error(error: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the squared and absolute errors, and those of the differences between neighbours, so that edges count too.

    `weight` [b, 1, h, w] is the weight of each pixel.
    """
    areas = sum((avg_pool2d(weight, n) * avg_pool2d(error, n).abs()).mean() for n in (1, 2, 4))
    across = (weight[..., 1:] * error.diff(dim=3).abs()).mean()
    down = (weight[..., 1:, :] * error.diff(dim=2).abs()).mean()
    return areas + 4 * (weight * error.square()).mean() + 0.5 * (across + down)


@torch.no_grad()
def encoded(vae: AutoencoderKL, pictures: np.ndarray, batch: int = 64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return mean and standard deviation of the posterior of each batch, on the CPU: float32 [b, 8, h/4, w/4] each."""
    found = []
    for start in range(0, len(pictures), batch):
        posterior = vae.encode(to_pixels(pictures[start : start + batch]).to(vae.device)).latent_dist
        found.append((posterior.mean.cpu(), posterior.std.cpu()))
    return found


@torch.no_grad()
def through(vae: AutoencoderKL, pictures: np.ndarray, batch: int = 64) -> np.ndarray:
    """Return the pictures after encoding and decoding, uint8 [n, h, w, 3]."""
    parts = []
    for start in range(0, len(pictures), batch):
        decoded = vae.decode(vae.encode(to_pixels(pictures[start : start + batch]).to(vae.device)).latent_dist.mean)
        parts.append(((decoded.sample.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(parts)


def to_pixels(pictures: np.ndarray) -> torch.Tensor:
    """Convert pictures uint8 [b, h, w, 3 or 4] to pixels float32 [b, 3, h, w] from -1 to 1."""
    return torch.tensor(np.ascontiguousarray(pictures[..., :3])).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def object_psnr(decoded: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """Return the peak signal-to-noise ratio of each picture's object, in decibels, float64 [n]."""
    weight = pictures[..., 3:] / 255.0
    error = (((decoded.astype(float) - pictures[..., :3]) / 255.0) ** 2 * weight).sum((1, 2, 3))
    return -10 * np.log10(error / (3 * weight.sum((1, 2, 3))))

"""The base's autoencoder, between pictures and latents of a quarter of their side with 4 channels.

Pictures are uint8 [n, h, w, 4]; the last channel is the object's share of each pixel (`base_training.pictures`).
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch.nn.functional import avg_pool2d
from tqdm import trange

from base_training.optimization import best_device, optimizer, rows_of_step

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
BATCH, PEAK_RATE, POLISHING_RATE, CRITICS_RATE = 32, 2e-3, 1e-3, 1e-3
OBJECT_WEIGHT = 3.0  # extra weight of an object's pixels when the decoder is polished
FEATURES_WEIGHT, CRITICS_WEIGHT = 2.0, 0.2  # weights beside the error when the decoder is polished
KL_WEIGHT = 1e-3  # for the mean over latents; keeps them near a unit normal, smooth enough for a small UNet


def train_autoencoder(pictures: np.ndarray, steps: int, seed: int) -> AutoencoderKL:
    """Return a trained autoencoder, on the best device; its scaling_factor gives latents a standard deviation of 1."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(**CONFIG).to(best_device()).train()

    def loss(rows: np.ndarray, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        pixels = to_pixels(pictures[rows]).to(vae.device)
        posterior = _posterior(vae, pixels)
        decoded = _decoded(vae, posterior.mean + posterior.std * _normal(posterior.std, rng))
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return _picture_error(decoded, pixels) + KL_WEIGHT * kl, decoded, pixels

    _train(vae, loss, len(pictures), steps, PEAK_RATE, seed, "autoencoder")
    latents = torch.cat([mean for mean, _ in encode(vae, pictures[:1024])])
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    return vae


def polish_decoder(vae: AutoencoderKL, pictures: np.ndarray, moments: np.ndarray, steps: int, seed: int) -> None:
    """Train only the decoder, in place: pictures become sharp, and latents do not change.

    A small network, the critic, learns at the same time to tell decoded patches from drawn ones. The decoder learns to
    deceive the critic (arXiv 2012.09841, section 3.1) and to give it the same features (arXiv 1711.11585, section 3.2).
    The error alone would be smallest if the decoder blurred what it cannot know. `moments` float16 [2, n, 4, h, w] are
    the means and standard deviations of the pictures' scaled posteriors.
    """
    torch.manual_seed(seed)
    vae.requires_grad_(False)
    decoder = torch.nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True).train()
    critic = _Critic().to(vae.device)
    critics_adam, critics_schedule = optimizer(critic.parameters(), CRITICS_RATE, [steps], weight_decay=0.0)

    def loss(rows: np.ndarray, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        pixels = to_pixels(pictures[rows]).to(vae.device)
        share = torch.from_numpy(pictures[rows, ..., 3]).to(vae.device)[:, None].float() / 255
        mean, std = (torch.from_numpy(part[rows]).to(vae.device).float() for part in moments)
        decoded = _decoded(vae, (mean + std * _normal(std, rng)) / vae.config.scaling_factor)

        *_, drawn = critic(pixels)
        *_, deceived = critic(decoded.detach())
        critics_adam.zero_grad()
        ((1 - drawn).relu().mean() + (1 + deceived).relu().mean()).backward()
        critics_adam.step()
        critics_schedule.step()

        critic.requires_grad_(False)
        with torch.no_grad():
            *wanted, _ = critic(pixels)
        *features, verdict = critic(decoded)
        critic.requires_grad_(True)
        alike = sum((mine - theirs).abs().mean() for mine, theirs in zip(features, wanted, strict=True))
        error = _picture_error(decoded, pixels, 1 + OBJECT_WEIGHT * share)
        return error + FEATURES_WEIGHT * alike - CRITICS_WEIGHT * verdict.mean(), decoded, pixels

    _train(decoder, loss, len(pictures), steps, POLISHING_RATE, seed, "decoder")
    vae.requires_grad_(True).eval()


class _Critic(torch.nn.Module):
    """A network that tells drawn pictures from decoded ones.

    From pictures [b, 3, h, w] it computes the features of each layer, and as the last of these a verdict
    [b, 1, h/4, w/4]: 1 for drawn, -1 for decoded. Each verdict is about a patch of 26 x 26 pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        sizes = ((3, 32, 4, 2), (32, 64, 4, 2), (64, 96, 3, 1), (96, 1, 3, 1))  # channels in and out, kernel, stride
        self.layers = torch.nn.ModuleList(
            torch.nn.utils.parametrizations.spectral_norm(torch.nn.Conv2d(before, after, kernel, stride, padding=1))
            for before, after, kernel, stride in sizes
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        outputs = []
        for layer in self.layers:
            x = layer(torch.nn.functional.leaky_relu(x, 0.2) if outputs else x)
            outputs.append(x)
        return outputs


def _train(
    module: torch.nn.Module,
    loss_of: Callable[[np.ndarray, torch.Generator], tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    count: int,
    steps: int,
    peak_rate: float,
    seed: int,
    name: str,
) -> None:
    """Train a module in place; `loss_of(rows, rng)` returns (loss, decoded, pixels) of the examples in `rows`."""
    adam, schedule = optimizer(module.parameters(), peak_rate, [steps], weight_decay=0.0)
    rng = torch.Generator().manual_seed(seed)
    with trange(steps, desc=name, unit="step") as progress:
        for step in progress:
            loss, decoded, pixels = loss_of(rows_of_step(count, BATCH, step, seed, name), rng)
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            adam.step()
            schedule.step()
            if step % 50 == 0:
                progress.set_postfix_str(f"loss {loss.detach():.4f}, {psnr(decoded, pixels):.2f} dB")
    module.eval()


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray, batch: int = 64) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield mean and standard deviation of the posterior, batch by batch on the CPU: float32 [b, 4, h/4, w/4] each."""
    for start in range(0, len(pictures), batch):
        posterior = _posterior(vae, to_pixels(pictures[start : start + batch]).to(vae.device))
        yield posterior.mean.cpu(), posterior.std.cpu()


@torch.no_grad()
def through(vae: AutoencoderKL, pictures: np.ndarray, batch: int = 64) -> Iterator[np.ndarray]:
    """Yield the pictures after encoding and decoding, batch by batch: uint8 [b, h, w, 3]."""
    for start in range(0, len(pictures), batch):
        pixels = to_pixels(pictures[start : start + batch]).to(vae.device)
        decoded = _decoded(vae, _posterior(vae, pixels).mean)
        yield ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def to_pixels(pictures: np.ndarray) -> torch.Tensor:
    """Convert pictures uint8 [b, h, w, 3 or 4] to pixels float32 [b, 3, h, w] from -1 to 1."""
    return torch.tensor(pictures[..., :3]).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


@torch.no_grad()
def psnr(decoded: torch.Tensor, pixels: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio in decibels; values are from -1 to 1."""
    return float(-10 * torch.log10(((decoded.clamp(-1, 1) - pixels) / 2).square().mean()))


def _posterior(vae: AutoencoderKL, pixels: torch.Tensor) -> DiagonalGaussianDistribution:
    with torch.autocast(vae.device.type, torch.bfloat16):
        parameters = vae.encode(pixels).latent_dist.parameters
    return DiagonalGaussianDistribution(parameters.float())


def _decoded(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    with torch.autocast(vae.device.type, torch.bfloat16):
        return vae.decode(latents).sample.float()


def _normal(like: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    return torch.randn(like.shape, generator=rng).to(like.device)


def _picture_error(decoded: torch.Tensor, pixels: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Return the L1 error at three scales, plus that of the differences between neighbours, so that edges count too.

    `weight` [b, 1, h, w] is the weight of each pixel; None means equal weights.
    """
    error = decoded - pixels
    weight = torch.ones_like(error[:, :1]) if weight is None else weight
    areas = sum((avg_pool2d(weight, n) * avg_pool2d(error, n).abs()).mean() for n in (1, 2, 4))
    across = (weight[..., 1:] * error.diff(dim=3).abs()).mean()
    down = (weight[..., 1:, :] * error.diff(dim=2).abs()).mean()
    return areas + 0.5 * (across + down)

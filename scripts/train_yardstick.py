"""Train the network of the yardstick on renderings whose truth is known.

    python scripts/train_yardstick.py --base booth/embedded_base --out booth/evaluate/yardstick.safetensors

Training makes five steps per second on two CPU cores. The network learns the class, the setting, and a vector that is
similar for pictures of one individual and different for others of its class. Some pictures went through the base's
autoencoder, like generated ones.
"""

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from base_training.autoencoder import through, to_pixels
from base_training.optimization import best_device, optimizer
from diffusers import AutoencoderKL
from picture_world.identity import identity_vector, sample_instance
from picture_world.settings import SETTINGS
from picture_world.world import CLASSES, generator, render, sample_scene
from safetensors.numpy import save_file
from torch import nn
from torch.nn.functional import cross_entropy, interpolate, normalize
from tqdm import tqdm, trange

from booth.evaluate.yardstick import SIDE

WORLD_SEED = 7_000_000  # the base does not learn from the individuals of this world
INDIVIDUALS, VIEWS, STEPS = 10_000, 3, 5_000
CLASSES_A_BATCH, INDIVIDUALS_A_CLASS = 4, 16
# Output channels and strides of the convolutions.
CHANNELS = ((32, 2), (64, 2), (64, 1), (128, 2), (128, 1), (192, 2), (192, 1))
TEMPERATURE = 0.1


class Network(nn.Module):
    """The network that `booth.evaluate.yardstick` computes, with batch norms; `folded` moves them into the weights."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *(width for width, _ in CHANNELS)]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
            for before, (width, stride) in zip(widths, CHANNELS, strict=False)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width, _ in CHANNELS)
        self.hidden = nn.Linear(2 * widths[-1], 256)
        self.heads = nn.ModuleDict(
            {"class": nn.Linear(256, len(CLASSES)), "setting": nn.Linear(256, len(SETTINGS))}
            | {"identity": nn.Linear(256, 64), "truth": nn.Linear(256, 32)}  # "truth" is used only in training
        )

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x)).relu()
        hidden = self.hidden(torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)).relu()
        return {name: head(hidden) for name, head in self.heads.items()}

    @torch.no_grad()
    def folded(self) -> dict[str, np.ndarray]:
        """Return the float16 weights that `booth.evaluate.yardstick` reads."""
        tensors = {}
        for layer, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            gain = norm.weight / (norm.running_var + norm.eps).sqrt()
            tensors[f"conv{layer}.weight"] = (conv.weight * gain[:, None, None, None]).permute(2, 3, 1, 0)
            tensors[f"conv{layer}.bias"] = norm.bias - norm.running_mean * gain
            tensors[f"conv{layer}.stride"] = torch.tensor([conv.stride[0]])
        for name, linear in (("hidden", self.hidden), *self.heads.items()):
            if name != "truth":
                tensors[f"{name}.weight"], tensors[f"{name}.bias"] = linear.weight.T, linear.bias
        return {name: np.ascontiguousarray(tensor.half().numpy()) for name, tensor in tensors.items()}


def draw_individuals(first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return 100 individuals: pictures uint8 [100, VIEWS, SIDE, SIDE, 3], settings [100, VIEWS], identities [100, 32].

    The class of individual i is i modulo the number of classes.
    """
    pictures, settings, truths = [], [], []
    for index in range(first, first + 100):
        rng = generator(WORLD_SEED, index)
        instance = sample_instance(tuple(CLASSES)[index % len(CLASSES)], rng)
        scenes = [sample_scene(rng) for _ in range(VIEWS)]
        pictures.append([render(instance, scene, SIDE) for scene in scenes])
        settings.append([tuple(SETTINGS).index(scene.setting) for scene in scenes])
        truths.append(identity_vector(instance))
    return np.array(pictures), np.array(settings), np.array(truths)


def augmented(pixels: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Return augmented pixels, float32 [n, 3, h, w]: some mirrored or blurred, all a little noisy, lighter or darker.

    None of these changes what the pictures show.
    """
    count = len(pixels)

    def chance(share: float) -> torch.Tensor:
        return (torch.rand(count, generator=rng) < share)[:, None, None, None]

    pixels = torch.where(chance(0.5), pixels.flip(3), pixels)
    blurred = interpolate(interpolate(pixels, scale_factor=0.5, mode="area"), scale_factor=2, mode="bilinear")
    pixels = torch.where(chance(0.3), blurred, pixels)
    gain = 1 + 0.1 * torch.randn(count, 1, 1, 1, generator=rng)
    offset = 0.05 * torch.randn(count, 3, 1, 1, generator=rng)
    spread = 0.06 * torch.rand(count, 1, 1, 1, generator=rng)
    return pixels * gain + offset + spread * torch.randn(pixels.shape, generator=rng)


def identity_loss(identity: torch.Tensor) -> torch.Tensor:
    """Return the InfoNCE loss (arXiv 1807.03748) of vectors [n, 2, d], two pictures of each individual."""
    vectors = normalize(identity, dim=-1).transpose(0, 1).flatten(0, 1)  # all first views, then all second views
    count = len(vectors)
    logits = vectors @ vectors.T / TEMPERATURE
    logits = logits.masked_fill(torch.eye(count, dtype=torch.bool), -torch.inf)
    return cross_entropy(logits, (torch.arange(count) + count // 2) % count)


def train_yardstick(vae: AutoencoderKL, individuals: int, steps: int, seed: int) -> Network:
    """Train and return the network, on the CPU. The last view of each individual goes through the autoencoder `vae`."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = pool.map(draw_individuals, range(0, individuals, 100))
        drawn = list(tqdm(parts, desc="drawing", total=individuals // 100, unit="hundred"))
    pictures, settings, truths = (np.concatenate(part) for part in zip(*drawn, strict=True))
    batches = through(vae, pictures[:, -1])
    pictures[:, -1] = np.concatenate(list(tqdm(batches, desc="autoencoder", total=-(-individuals // 64), unit="batch")))
    torch.manual_seed(seed)
    device, network = best_device(), Network()
    network.to(device).train()
    adam, schedule = optimizer(network.parameters(), 2e-3, [steps])
    rng, augmenting = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    with trange(steps, desc="yardstick", unit="step") as progress:
        for step in progress:
            classes = rng.choice(len(CLASSES), CLASSES_A_BATCH, replace=False)
            size = individuals // len(CLASSES)
            rows = np.concatenate(
                [rng.choice(size, INDIVIDUALS_A_CLASS, replace=False) * len(CLASSES) + c for c in classes]
            )
            views = np.stack([rng.choice(VIEWS, 2, replace=False) for _ in rows])
            pixels = to_pixels(pictures[rows[:, None], views].reshape(-1, SIDE, SIDE, 3))
            with torch.autocast(device.type, torch.bfloat16):
                seen = {
                    name: out.float().cpu() for name, out in network(augmented(pixels, augmenting).to(device)).items()
                }
            class_loss = cross_entropy(seen["class"], torch.from_numpy((rows % len(CLASSES)).repeat(2)))
            setting_loss = cross_entropy(seen["setting"], torch.from_numpy(settings[rows[:, None], views].ravel()))
            truth_loss = (seen["truth"] - torch.from_numpy(truths[rows].repeat(2, axis=0))).square().mean()
            same = identity_loss(seen["identity"].unflatten(0, (-1, 2)))
            loss = class_loss + setting_loss + same + 2 * truth_loss
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
            if step % 20 == 0:
                parts = {"class": class_loss, "setting": setting_loss, "identity": same, "truth": truth_loss}
                progress.set_postfix({name: f"{part.detach():.3f}" for name, part in parts.items()})
    return network.cpu().eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="pipeline folder with the autoencoder")
    parser.add_argument("--out", type=Path, required=True, help=".safetensors file")
    parser.add_argument("--individuals", type=int, default=INDIVIDUALS, help="a multiple of 100, at least 200")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.individuals < 200 or arguments.individuals % 100:
        parser.error(f"--individuals {arguments.individuals} must be a multiple of 100, at least 200")
    vae = AutoencoderKL.from_pretrained(arguments.base, subfolder="vae", torch_dtype=torch.float32)
    vae.to(best_device()).eval()
    network = train_yardstick(vae, arguments.individuals, arguments.steps, arguments.seed)
    names = {"classes": json.dumps(tuple(CLASSES)), "settings": json.dumps(tuple(SETTINGS))}
    save_file(network.folded(), arguments.out, metadata={"format": "np", **names})
    arguments.out.chmod(0o644)  # safetensors creates a file that only the owner may read

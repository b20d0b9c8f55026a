"""The base's text encoder and UNet, trained together to predict the velocity of latents from captions."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from base_training.optimization import best_device, optimizer, rows_of_step
from booth.common import randomness
from booth.diffusion.schedule import NoiseSchedule, noise_schedule

UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (64, 128, 192),
    "layers_per_block": 1,
    "cross_attention_dim": 96,
    "attention_head_dim": 4,  # the number of heads, in diffusers' spelling
    "norm_num_groups": 16,
}
TEXT_ENCODER = {
    "vocab_size": 1024,
    "hidden_size": 96,
    "intermediate_size": 384,
    "projection_dim": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 1022,
    "eos_token_id": 1023,
    "pad_token_id": 1023,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    # This schedule ends in nearly pure noise. Stable Diffusion's own leaves a signal of 0.07, in which latents as small
    # as these still show how dark a picture is; but sampling starts without that signal.
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}
BATCH, PEAK_RATE, EMA_DECAY, UNCONDITIONAL, OBJECT_WEIGHT = 32, 8e-4, 0.999, 0.1, 3.0
SAVE_EVERY = 500


class Networks(NamedTuple):
    """The two networks that are trained together."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel


def build() -> Networks:
    """Return both networks, initialised by their libraries."""
    return Networks(UNet2DConditionModel(**UNET), CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER)))


def train_denoiser(
    moments: np.ndarray,
    shares: np.ndarray,
    caption: Callable[[int, np.random.Generator], str],
    tokenizer: CLIPTokenizer,
    cycles: Sequence[int],
    seed: int,
    checkpoint: Path,
    look: Callable[[int, Networks], None],
    initial: Networks | None = None,
) -> Networks:
    """Train both networks on n examples, from the `initial` ones or from nothing; return the moving average of their
    weights.

    `moments` float16 [2, n, c, h, w] are the means and standard deviations of the scaled posteriors. `shares` [n, h, w]
    are the object's share of each latent, from 0 to 1; errors of objects get more weight, because settings are learned
    soon. `caption(index, rng)` returns a caption of an example. `cycles` are the numbers of steps of each fall of the
    learning rate. Every `SAVE_EVERY` steps the state is written to `checkpoint`, from which an interrupted training
    continues, and `look(step, average)` is called.
    """
    torch.manual_seed(seed)
    device, networks = best_device(), initial or build()
    modules = torch.nn.ModuleList(networks).to(device).train()
    average = torch.optim.swa_utils.AveragedModel(
        modules, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_DECAY)
    ).eval()
    adam, schedule = optimizer(modules.parameters(), PEAK_RATE, cycles)
    parts = {"modules": modules, "average": average, "adam": adam, "schedule": schedule}
    start, steps = 0, sum(cycles)
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        start = saved.pop("step")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    words = _Words(tokenizer)
    noising = noise_schedule(SCHEDULER)
    mean, std = moments
    averaged = Networks(*average.module)
    losses = []
    with tqdm(total=steps, initial=start, desc="denoiser", unit="step") as progress:
        for step in range(start, steps):
            rng = randomness.generator(seed, "denoiser", step)
            rows = rows_of_step(len(mean), BATCH, step, seed, "denoiser")
            captions = ["" if rng.uniform() < UNCONDITIONAL else caption(int(row), rng) for row in rows]
            noisy, timestep, target = (part.to(device) for part in _noised(mean[rows], std[rows], noising, rng))
            with torch.autocast(device.type, torch.bfloat16):
                context = networks.text_encoder(words(captions).to(device)).last_hidden_state
                predicted = networks.unet(noisy, timestep, context).sample
            weight = 1 + OBJECT_WEIGHT * torch.from_numpy(shares[rows]).to(device).float()[:, None]
            loss = (weight * (predicted.float() - target).square()).mean()
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
            adam.step()
            schedule.step()
            average.update_parameters(modules)
            losses.append(float(loss.detach()))
            progress.update()
            if (step + 1) % 50 == 0:
                progress.set_postfix_str(f"loss {np.mean(losses[-200:]):.4f}")
            if (step + 1) % SAVE_EVERY == 0:
                staging = checkpoint.with_suffix(".new")
                torch.save({"step": step + 1, **{name: part.state_dict() for name, part in parts.items()}}, staging)
                staging.replace(checkpoint)
                look(step + 1, averaged)
    return averaged


def _noised(
    mean: np.ndarray, std: np.ndarray, noising: NoiseSchedule, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw latents from posteriors; return noisy latents float32 [b, 4, h, w], timesteps int64 [b], and velocities."""
    latents = mean + std * rng.standard_normal(mean.shape, np.float32)
    noise = rng.standard_normal(mean.shape, np.float32)
    timestep = timesteps(rng, len(mean), noising.timesteps)
    noisy = _column(noising.signal(timestep)) * latents + _column(noising.sigma(timestep)) * noise
    on_latents, on_noise = noising.target(timestep)
    target = _column(on_latents) * latents + _column(on_noise) * noise
    return torch.from_numpy(noisy), torch.from_numpy(timestep), torch.from_numpy(target)


def timesteps(rng: np.random.Generator, count: int, schedule_length: int) -> np.ndarray:
    """Draw timesteps, int64 [count].

    Most are logit-normal (arXiv 2403.03206, section 3.1) around the noise at which objects take shape, as a third of
    all timesteps is so noisy that only the mean of a setting can be learned there. One in ten is drawn uniformly, so
    that no timestep is left out.
    """
    middle = 1 / (1 + np.exp(-rng.normal(-0.3, 0.9, count)))
    share = np.where(rng.uniform(size=count) < 0.1, rng.uniform(size=count), middle)
    return (share * schedule_length).astype(np.int64)


class _Words:
    """Convert captions to token ids int64 [n, 77]; each distinct caption is tokenized once."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self._tokenizer, self._known = tokenizer, {}

    def __call__(self, captions: list[str]) -> torch.Tensor:
        if new := sorted(set(captions) - self._known.keys()):
            ids = self._tokenizer(new, padding="max_length", truncation=True)["input_ids"]
            self._known.update(zip(new, ids, strict=True))
        return torch.tensor([self._known[caption] for caption in captions])


def _column(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)[:, None, None, None]

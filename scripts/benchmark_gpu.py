"""Measure training speed and memory on a large GPU, by rows in a batch, for both backends and an example script.

    python scripts/benchmark_gpu.py --size sd15 --rows 2 8 32 64          # an H100 or H200; needs diffusers
    python scripts/benchmark_gpu.py --size sd15 --rows 2 --set train.compile=default     # the effect of a setting
    python scripts/benchmark_gpu.py --size tiny --resolution 64 --rows 2 4 --precision fp32 --rounds 2   # any CPU

The UNet is fully fine-tuned on random numbers with cached latents and text embeddings. `reference` does what example
scripts do in every step, with VAE and text encoder, autocast and AdamW. Each measurement is a separate process, so that
none keeps memory of another. Contestants take turns, so that noise of the machine affects all of them. Utilisation is
the FLOP/s that the model needs, three times those of a forward pass, divided by `--peak`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from booth.config.texts import parse_text
from booth.config.values import default_config, set_field
from booth.diffusion.backend import Batch
from booth.diffusion.sampling import latent_shape
from booth.models.open import open_pipeline

CONTESTANTS = ("jaxbooth", "torchbooth", "reference")


def random_batch(pipeline: Any, rows: int, side: int, seed: int) -> Batch:
    """Return a batch of `rows` rows, half of them class rows, with the shapes of a real batch."""
    rng = np.random.default_rng(seed)
    latents, width = latent_shape(pipeline, side, side), pipeline.component_config("unet")["cross_attention_dim"]
    ones, prior = np.ones(rows, np.float32), np.arange(rows) >= rows // 2
    return Batch(
        latents=rng.standard_normal((rows, *latents), np.float32),
        noise=rng.standard_normal((rows, *latents), np.float32),
        timestep=rng.integers(0, 1000, rows, np.int32),
        signal=ones * 0.8, sigma=ones * 0.6, target_latent=ones * 0, target_noise=ones,
        weight=ones * 2 / rows, instance_weight=~prior * ones * 2 / rows, prior_weight=prior * ones * 2 / rows,
        huber_delta=ones, mask=np.ones((rows, 1, 1, 1), np.float32),
        prompt_index=prior.astype(np.int32),
        prompts=rng.standard_normal((2, 77, width), np.float32),
        learning_rate={"unet": np.array(5e-6, np.float32)},
    )  # fmt: skip


def our_steps(package: str, options: argparse.Namespace) -> tuple[Callable[[int], None], Callable[[], int]]:
    """Return (f, peak) for a backend: f(n) makes n updates and waits for the last; peak() gives peak bytes."""
    config = default_config()
    config.train.precision, config.train.batch_size = options.precision, options.one_rows // 2
    config.train.gradient_checkpointing = options.gradient_checkpointing
    if package == "torchbooth":
        for name, _, value in (each.partition("=") for each in options.set):
            set_field(config, name, parse_text(name, value))
    pipeline = open_pipeline(options.model)
    if package == "jaxbooth":
        import jax

        from jaxbooth.backend import Backend as JaxBackend

        backend: Any = JaxBackend(config)

        def peak() -> int:
            return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    else:
        import torch

        from torchbooth.backend import Backend as TorchBackend

        backend, peak = TorchBackend(config), torch.cuda.max_memory_allocated
    state = backend.init(backend.load(pipeline))
    made = [random_batch(pipeline, options.one_rows, options.resolution, seed) for seed in range(4)]

    def run(steps: int) -> None:
        nonlocal state
        for step in range(steps):
            state, metrics = backend.train_step(state, made[step % len(made)])
        float(metrics["loss"])

    return run, peak


def reference_steps(options: argparse.Namespace) -> tuple[Callable[[int], None], Callable[[], int]]:
    """Return (f, peak) for the example script, which keeps images in memory and computes the rest in every step."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.precision]
    unet = UNet2DConditionModel.from_pretrained(options.model, subfolder="unet").train().to(device)
    if options.gradient_checkpointing == "block":
        unet.enable_gradient_checkpointing()
    frozen = {"device": device, "dtype": dtype}
    vae = AutoencoderKL.from_pretrained(options.model, subfolder="vae").requires_grad_(False).to(**frozen)
    text_encoder = CLIPTextModel.from_pretrained(options.model, subfolder="text_encoder").requires_grad_(False)
    text_encoder.to(**frozen)
    scheduler = DDPMScheduler.from_pretrained(options.model, subfolder="scheduler")
    optimizer = torch.optim.AdamW(unet.parameters(), lr=5e-6)
    rows, side = options.one_rows, options.resolution
    pixels, ids = torch.randn(rows, 3, side, side), torch.ones(rows, 77, dtype=torch.long)

    def run(steps: int) -> None:
        for _ in range(steps):
            latents = vae.encode(pixels.to(**frozen)).latent_dist.sample() * vae.config.scaling_factor
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, 1000, (rows,), device=device)
            noisy = scheduler.add_noise(latents, noise, timesteps)
            context = text_encoder(ids.to(device))[0]
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                prediction = unet(noisy, timesteps, context).sample.float()
            (ours, theirs), (noise_a, noise_b) = prediction.chunk(2), noise.float().chunk(2)
            loss = torch.nn.functional.mse_loss(ours, noise_a) + torch.nn.functional.mse_loss(theirs, noise_b)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loss.item()

    return run, torch.cuda.max_memory_allocated if device == "cuda" else lambda: 0


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Measure one contestant at one number of rows: seconds per step and of the first step, and the peak memory."""
    began = time.perf_counter()
    run, peak = reference_steps(options) if options.one == "reference" else our_steps(options.one, options)
    loaded = time.perf_counter()
    run(1)
    first = time.perf_counter()
    run(3)
    begun = time.perf_counter()
    run(options.steps)
    seconds = (time.perf_counter() - begun) / options.steps
    return {"seconds": seconds, "first": first - loaded, "load": loaded - began, "gib": peak() / 2**30}


def flops_per_row(options: argparse.Namespace) -> float:
    from jaxbooth.plan import needed_flops

    config = default_config()
    config.data.resolution = options.resolution
    return needed_flops(config, open_pipeline(options.model, weights=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size", default="sd15", help="a size of make_pipeline.py; the model is made in a temporary folder"
    )
    parser.add_argument("--model", help="a pipeline folder instead of --size")
    parser.add_argument("--rows", type=int, nargs="+", default=[2, 8, 32, 64])
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--gradient-checkpointing", choices=("none", "block"), default="none")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting for torchbooth only"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--peak", type=float, default=989e12, help="FLOP/s of the device in bfloat16")
    parser.add_argument("--one", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--one-rows", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if not options.model:
            from make_pipeline import make_pipeline

            options.model = str(make_pipeline(options.size, Path(folder) / options.size))
        needed = flops_per_row(options)
        print(f"{options.model}, {options.resolution} pixels, {options.precision}: {needed:.3g} FLOPs a row and update")
        print("| rows | contestant | samples/s (range) | times the reference | GiB | utilisation | first step, s |")
        print("|---|---|---|---|---|---|---|")
        for rows in options.rows:
            compare(options, rows, needed)


def compare(options: argparse.Namespace, rows: int, needed: float) -> None:
    """Measure all contestants at one number of rows and print one line for each."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in options.contestants}
    failed = {}
    for _ in range(options.rounds):
        for name in [name for name in results if name not in failed]:
            command = [sys.executable, __file__, "--one", name, "--one-rows", str(rows), "--model", options.model]
            command += ["--resolution", str(options.resolution), "--precision", options.precision]
            command += ["--gradient-checkpointing", options.gradient_checkpointing, "--steps", str(options.steps)]
            command += [word for each in options.set for word in ("--set", each)]
            with tempfile.TemporaryDirectory() as cache:  # so that the first step compiles
                environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
                done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                failed[name] = (done.stderr.strip().splitlines() or ["killed"])[-1][:100]
            else:
                results[name].append(json.loads(done.stdout.splitlines()[-1]))
    reference = [result["seconds"] for result in results.get("reference", [])]
    for name, found in results.items():
        if name in failed:
            print(f"| {rows} | {name} | {failed[name]} | | | | |", flush=True)
            continue
        speeds = [rows / result["seconds"] for result in found]
        ratios = [other / result["seconds"] for other, result in zip(reference, found, strict=False)]
        cells = [str(rows), name, with_range(speeds), with_range(ratios), f"{found[0]['gib']:.1f}"]
        cells += [f"{statistics.median(speeds) * needed / options.peak:.1%}", f"{found[0]['first']:.1f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def with_range(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else ""


if __name__ == "__main__":
    main()

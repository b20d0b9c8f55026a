"""Compare the speed of both backends and of a plain reference step.

    python scripts/benchmark.py                      # tiny model, 64 pixels, 1 + 1 rows, CPU

The reference does what example scripts do in every step, with diffusers modules and AdamW, including VAE and text
encoder. The three take turns in one run, so that noise of the machine affects all of them. Speeds are compared as
ratios within a round; the table shows their median and range over the rounds.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from draw_photos import draw_photos
from make_pipeline import make_pipeline
from transformers import CLIPTextModel, CLIPTokenizer

from booth.config.values import default_config
from booth.data.image_folder import find_images
from booth.data.images import read_examples
from booth.data.inputs import check_inputs
from booth.data.views import pixels as pixels_of
from booth.data.views import views
from booth.train import loop
from booth.train.batches import Batches
from booth.train.learning_rate import learning_rates
from booth.train.preparation import prepare
from booth.train.run_folder import RunDir


def make_config(folder: Path):
    config = default_config()
    config.model.source, config.instance.images = str(folder / "tiny"), str(folder / "photos")
    config.instance.prompt, config.prior.prompt = "a photo of sks robot", "a photo of robot"
    config.prior.count, config.prior.inference_steps = 4, 2
    config.data.resolution = 64
    config.checkpoint.every_steps = 0
    return config


def reference_steps(config, class_images: Path) -> Callable[[int], None]:
    """Return f(n), which takes n steps as an example script does; images are decoded beforehand."""
    folder = config.model.source
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").train()
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").requires_grad_(False)
    text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    optimizer = torch.optim.AdamW(unet.parameters(), lr=config.train.learning_rate)
    prompts = [config.instance.prompt, config.prior.prompt]
    ids = tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt").input_ids

    def images(paths, kind):
        shown = [views(example, (64, 64), "center", 1, False, 0)[0] for example in read_examples(paths, "", kind, kind)]
        return [torch.from_numpy(pixels_of(view)).permute(2, 0, 1) for view in shown]

    instance = images(find_images(config.instance.images, "instance.images"), "instance")
    prior = images(find_images(class_images, "prior.images"), "prior")

    def run(steps: int) -> None:
        for step in range(steps):
            pixels = torch.stack([instance[step % len(instance)], prior[step % len(prior)]])
            latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, 1000, (2,))
            prediction = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, text_encoder(ids)[0]).sample
            (ours, theirs), (noise_a, noise_b) = prediction.chunk(2), noise.chunk(2)
            loss = torch.nn.functional.mse_loss(ours, noise_a) + torch.nn.functional.mse_loss(theirs, noise_b)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return run


def bare_steps(backend_class, config, batches: Batches) -> Callable[[int], None]:
    """Return f(n), which calls train_step n times on batches made beforehand and waits for the last result."""
    backend = backend_class(config)
    state = backend.init(backend.load(check_inputs(config).pipeline))
    made = [batches(step, learning_rates(config, step)) for step in range(20)]

    def run(steps: int) -> None:
        nonlocal state
        for step in range(steps):
            state, metrics = backend.train_step(state, made[step % len(made)])
        float(metrics["loss"])

    return run


def loop_seconds_per_step(backend_class, config, folder: Path, steps: int) -> float:
    """Return the seconds per step of the real loop in the middle of a run, with batches, metrics and progress."""
    config = config.copy_and_resolve_references()
    config.train.steps = steps
    run = loop.train(backend_class, config, folder)
    speeds = [line["samples_per_s"] for line in run.metrics[10:]]
    return 2 / statistics.harmonic_mean(speeds)


def show_start_up(package: str, config, folder: Path) -> None:
    """Print the time to the first step of two new runs; the second finds compiled functions in the cache."""
    source, photos = config.model.source, config.instance.images
    command = [sys.executable, "-m", f"{package}.train", "--config", "configs/smoke.py"]
    command += [f"--config.model.source={source}", f"--config.instance.images={photos}"]
    command += ["--config.train.steps=2", "--config.samples.every_steps=0"]
    command += [f"--config.prior.images={config.prior.images}", "--config.prior.inference_steps=2"]
    for attempt in ("first", "second"):
        begun = time.perf_counter()
        text = subprocess.run([*command, "--workdir", str(folder / attempt)], capture_output=True, text=True)
        assert text.returncode == 0, text.stderr
        whole = time.perf_counter() - begun
        reported = re.search(r"first step finished ([\d.]+) s", text.stderr)
        print(f"  {package}, {attempt} start: first step {reported[1]} s after it began, whole command {whole:.1f} s")


def timed(run: Callable[[int], None], steps: int) -> float:
    begun = time.perf_counter()
    run(steps)
    return (time.perf_counter() - begun) / steps


def summary(values: list[float]) -> str:
    return f"{statistics.median(values):6.2f}   ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=60, help="steps of each contestant in a round")
    options = parser.parse_args()

    from jaxbooth.backend import Backend as JaxBackend
    from torchbooth.backend import Backend as TorchBackend

    backends = {"jaxbooth": JaxBackend, "torchbooth": TorchBackend}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pipeline("tiny", folder / "tiny")
        draw_photos(folder / "photos")
        config = make_config(folder)
        inputs = check_inputs(config)
        backend = TorchBackend(config)
        with RunDir.open(folder / "run", "torch", config) as run:
            batches = prepare(config, inputs, run, backend, backend.load(inputs.pipeline))
        config.prior.images = str(folder / "run" / "class_images")

        runners = {"reference": reference_steps(config, folder / "run" / "class_images")}
        runners |= {package: bare_steps(cls, config, batches) for package, cls in backends.items()}
        for runner in runners.values():
            runner(5)  # compiling and first allocations do not count
        rounds = []
        for number in range(options.rounds):
            seconds = {package: timed(runner, options.steps) for package, runner in runners.items()}
            for package, cls in backends.items():
                seconds[f"{package} loop"] = loop_seconds_per_step(
                    cls, config, folder / f"{package}-{number}", options.steps + 10
                )
                seconds[f"{package} bare again"] = timed(runners[package], options.steps)
            rounds.append(seconds)
            print("round", number + 1, {key: f"{1e3 * value:.1f} ms" for key, value in seconds.items()}, flush=True)

        print("\nsteps/s                           median   (range)")
        for package in runners:
            print(f"  {package:<30}", summary([1 / seconds[package] for seconds in rounds]))
        print("times the reference step")
        for package in backends:
            print(f"  {package:<30}", summary([seconds["reference"] / seconds[package] for seconds in rounds]))
        print("the loop's step over the mean of the bare steps before and after it")
        for package in backends:
            bare = [(seconds[package] + seconds[f"{package} bare again"]) / 2 for seconds in rounds]
            over = [seconds[f"{package} loop"] / b for seconds, b in zip(rounds, bare, strict=True)]
            print(f"  {package:<30}", summary(over))
        print("start-up")
        for package in backends:
            show_start_up(package, config, folder / f"start-{package}")


if __name__ == "__main__":
    main()

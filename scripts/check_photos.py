"""Train on photos with both backends, and compare the images of the exported pipelines with those of diffusers.

    python scripts/check_photos.py --photos photos --subject dog --out check

The script trains the tiny model with prior preservation on the photos with each backend and compares the losses. It
then samples each exported pipeline with our solvers and with diffusers' StableDiffusionPipeline from the same initial
noise. It prints the largest differences, and its exit code is 1 if losses differ by more than 1e-4 or images by more
than 2/255.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from make_pipeline import make_pipeline

from booth.config.values import default_config
from booth.diffusion.backend import load_backend
from booth.diffusion.sampling import ImageRequest, Sampler, initial_noise
from booth.models.open import open_pipeline
from booth.models.tokenizer import load_tokenizer
from booth.train import loop

# solver -> the class of diffusers and the number of steps
SOLVERS = {
    "dpm++": (DPMSolverMultistepScheduler, 25),
    "ddim": (DDIMScheduler, 50),
    "euler": (EulerDiscreteScheduler, 30),
    "pndm": (PNDMScheduler, 50),
}


def image_difference(package: str, folder: Path, prompt: str, solver: str) -> int:
    """Return the largest difference between four 64x64 images of booth and of diffusers, in 1/255, at guidance 7.5."""
    scheduler, steps = SOLVERS[solver]
    pipeline, backend = open_pipeline(folder), load_backend(package)(default_config())
    requests = [ImageRequest(prompt, seed, "blurry") for seed in range(4)]
    sampler = Sampler(pipeline, load_tokenizer(pipeline), (64, 64), solver, steps, 7.5, 4)
    theirs = StableDiffusionPipeline.from_pretrained(folder)
    theirs.scheduler = scheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    worst = 0
    for index, ours in sampler.images(backend, backend.load(pipeline), requests):
        request = requests[index]
        noise = torch.from_numpy(initial_noise(request.seed, sampler.latent_shape)).permute(2, 0, 1)[None]
        image = theirs(
            request.prompt,
            negative_prompt=request.negative_prompt,
            num_inference_steps=steps,
            guidance_scale=7.5,
            width=64,
            height=64,
            latents=noise,
            output_type="np",
        ).images[0]
        worst = max(worst, int(np.abs((image * 255).round() - ours.astype(int)).max()))
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--subject", default="dog", help="the class noun")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    options = parser.parse_args()

    config = default_config()
    config.model.source, config.instance.images = str(options.out / "tiny"), str(options.photos)
    config.instance.prompt, config.prior.prompt = f"a photo of sks {options.subject}", f"a photo of {options.subject}"
    config.prior.count, config.prior.inference_steps, config.data.resolution = 8, 20, 64
    config.train.steps, config.train.learning_rate = 40, 1e-4
    make_pipeline("tiny", options.out / "tiny")

    packages = ("torchbooth", "jaxbooth")
    runs = {package: loop.train(load_backend(package), config, options.out / package) for package in packages}
    losses = [np.array([line["loss"] for line in run.metrics]) for run in runs.values()]
    apart = np.max(np.abs(losses[0] - losses[1]) / losses[0])
    print(f"40 steps: losses of the two backends differ by at most {apart:.1e}")
    worst = 0
    for package, run in runs.items():
        for solver in SOLVERS:
            images = image_difference(package, run.pipeline, config.instance.prompt + " on the beach", solver)
            print(f"{package}: {run.pipeline}, {solver}: images differ from diffusers' by at most {images}/255")
            worst = max(worst, images)
    return int(apart > 1e-4 or worst > 2)


if __name__ == "__main__":
    sys.exit(main())

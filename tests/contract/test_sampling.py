"""Images: the same as diffusers makes, and the same image however many are asked for."""

from unittest import mock

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from diffusers.schedulers import scheduling_euler_ancestral_discrete
from PIL import Image

from booth.config.values import default_config
from booth.diffusion.sampling import ImageRequest, Sampler, initial_noise, step_noise
from booth.models.open import open_pipeline
from booth.models.tokenizer import load_tokenizer
from booth.train import loop

SCHEDULERS = {
    "dpm++": DPMSolverMultistepScheduler,
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
    "pndm": PNDMScheduler,
}
PROMPT, NEGATIVE = "a photo of sks robot on the beach", "blurry"


def our_images(backend_class, folder, requests, *, solver="dpm++", steps=8, guidance=5.0, size=(64, 64), batch_size=2):
    pipeline = open_pipeline(str(folder))
    backend = backend_class(default_config())
    sampler = Sampler(pipeline, load_tokenizer(pipeline), size, solver, steps, guidance, batch_size)
    return np.stack([image for _, image in sampler.images(backend, backend.load(pipeline), requests)])


def diffusers_image(folder, request, *, solver="dpm++", steps=8, guidance=5.0, size=(64, 64)):
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.scheduler = SCHEDULERS[solver].from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    shape = (size[1] // 8, size[0] // 8, 4)
    noise = initial_noise(request.seed, shape)
    fresh = list(torch.from_numpy(step_noise(request.seed, steps, shape)).permute(0, 3, 1, 2)[:, None])
    with mock.patch.object(scheduling_euler_ancestral_discrete, "randn_tensor", side_effect=fresh):
        images = pipe(
            request.prompt,
            negative_prompt=request.negative_prompt,
            num_inference_steps=steps,
            guidance_scale=guidance,
            width=size[0],
            height=size[1],
            latents=torch.from_numpy(noise).permute(2, 0, 1)[None],
            output_type="np",
        ).images
    return (images[0] * 255).round().astype(np.uint8)


def furthest(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_the_exported_pipeline_gives_diffusers_the_same_images(backend_class, tiny_config, tmp_path):
    tiny_config.train.learning_rate = 1e-4
    run = loop.train(backend_class, tiny_config, tmp_path / "run")
    requests = [ImageRequest(PROMPT, 3, NEGATIVE), ImageRequest("a photo of robot", 2**63 - 1)]
    for solver, steps in (("euler", 8), ("euler_a", 8), ("pndm", 8), ("ddim", 8), ("dpm++", 25), ("dpm++", 8)):
        ours = our_images(backend_class, run.pipeline, requests, solver=solver, steps=steps)
        for image, request in zip(ours, requests, strict=True):
            assert furthest(image, diffusers_image(run.pipeline, request, solver=solver, steps=steps)) <= 2
            assert image.std() > 5, "a flat picture would prove nothing"
    assert furthest(ours[0], diffusers_image(run.pipeline, requests[0], solver="ddim")) > 2
    assert furthest(ours[0], diffusers_image(run.pipeline, requests[0], guidance=4.0)) > 2
    assert furthest(ours[0], diffusers_image(run.pipeline, ImageRequest(PROMPT, 3))) > 2
    assert furthest(ours[0], diffusers_image(tiny_config.model.source, requests[0])) > 2


@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
def test_unguided_and_not_square(backend_class, tiny_pipeline):
    request = ImageRequest(PROMPT, 1)
    ours = our_images(backend_class, tiny_pipeline, [request], guidance=1.0, size=(96, 64), batch_size=1)
    assert ours.shape == (1, 64, 96, 3)
    assert furthest(ours[0], diffusers_image(tiny_pipeline, request, guidance=1.0, size=(96, 64))) <= 2


@pytest.fixture
def class_image_bytes(backend_class, tiny_config, tmp_path):
    def make(name, count, steps=1):
        tiny_config.prior.count, tiny_config.train.steps = count, steps
        folder = loop.train(backend_class, tiny_config, tmp_path / name).path / "class_images"
        return folder, {path.name: path.read_bytes() for path in folder.glob("*.png")}

    return make


@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
def test_a_class_image_is_the_same_however_many_are_asked_for(class_image_bytes, tiny_config):
    folder, three = class_image_bytes("run", 3)
    assert len(set(three.values())) == 3, "each image has its own seed"
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    (folder / "class-00001.png").unlink()
    _, five = class_image_bytes("other", 5)
    assert five.items() >= three.items()
    # The interrupted folder is completed: what is there stays untouched, what is missing comes back as it was.
    _, again = class_image_bytes("run", 5, steps=2)
    assert again == five
    assert all(stamps[name] == (folder / name).stat().st_mtime_ns for name in stamps if name != "class-00001.png")


def test_own_class_images_come_first(backend_class, tiny_config, tmp_path):
    folder = tmp_path / "class"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 10, 10)).save(folder / f"mine-{number}.jpg")
    tiny_config.prior.images, tiny_config.prior.count, tiny_config.train.steps = str(folder), 4, 1
    loop.train(backend_class, tiny_config, tmp_path / "run")
    assert sorted(path.name for path in folder.glob("*.png")) == ["class-00000.png"], "only what is missing is made"

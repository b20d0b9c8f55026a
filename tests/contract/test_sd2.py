"""Stable Diffusion 2: from photos to a pipeline whose images diffusers draws too."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline

from booth.config.values import default_config
from booth.diffusion.sampling import ImageRequest, Sampler, initial_noise
from booth.diffusion.schedule import zero_terminal_snr
from booth.models.open import open_pipeline
from booth.models.tokenizer import load_tokenizer
from booth.train import loop

REQUEST = ImageRequest("a photo of sks robot on the beach", 3, "blurry")
STEPS, GUIDANCE, SIZE = 8, 5.0, 64


def our_image(backend_class, folder, solver="dpm++", change=lambda pipeline: pipeline):
    pipeline, backend = change(open_pipeline(str(folder))), backend_class(default_config())
    sampler = Sampler(pipeline, load_tokenizer(pipeline), (SIZE, SIZE), solver, STEPS, GUIDANCE, 1)
    ((_, image),) = sampler.images(backend, backend.load(pipeline), [REQUEST])
    return image.astype(int)


def diffusers_image(folder, scheduler=DPMSolverMultistepScheduler, **changes):
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    assert isinstance(pipe.scheduler, DDIMScheduler)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **changes)
    pipe.set_progress_bar_config(disable=True)
    noise = initial_noise(REQUEST.seed, (SIZE // 8, SIZE // 8, 4))
    image = pipe(
        REQUEST.prompt,
        negative_prompt=REQUEST.negative_prompt,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        width=SIZE,
        height=SIZE,
        latents=torch.from_numpy(noise).permute(2, 0, 1)[None],
        output_type="np",
    ).images[0]
    return (image * 255).round().astype(int)


@pytest.fixture
def sd2_config(tiny_config, tiny_sd2_pipeline):
    tiny_config.model.source = str(tiny_sd2_pipeline)
    tiny_config.train.learning_rate = 1e-4
    tiny_config.prior.batch_size = 1  # as below: sampling is compiled once
    return tiny_config


@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
def test_from_photos_to_a_pipeline(backend_class, sd2_config, tiny_sd2_pipeline, tmp_path):
    run = loop.train(backend_class, sd2_config, tmp_path / "run")
    assert [line["step"] for line in run.metrics] == [1, 2, 3, 4]
    assert np.isfinite([line["loss"] for line in run.metrics]).all()
    assert json.loads((run.pipeline / "export.json").read_text())["family"] == "sd2"
    for copied in ("scheduler/scheduler_config.json", "tokenizer/special_tokens_map.json", "unet/config.json"):
        assert (run.pipeline / copied).read_bytes() == (tiny_sd2_pipeline / copied).read_bytes()

    ours = our_image(backend_class, run.pipeline)
    assert ours.std() > 5, "a flat picture would prove nothing"
    assert np.abs(ours - diffusers_image(run.pipeline)).max() <= 2
    assert np.abs(ours - diffusers_image(run.pipeline, prediction_type="epsilon")).max() > 2, "velocity, not noise"
    with_ddim = our_image(backend_class, run.pipeline, "ddim")
    assert np.abs(with_ddim - diffusers_image(run.pipeline, DDIMScheduler)).max() <= 2
    assert np.abs(ours - diffusers_image(tiny_sd2_pipeline)).max() > 2, "it has been trained"


@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
def test_pictures_from_noise_alone(backend_class, tiny_sd2_pipeline):
    """Sampled with zero terminal SNR and trailing timesteps, as by diffusers' schedulers with these settings."""

    def rescaled(pipeline):
        return pipeline.with_scheduler(zero_terminal_snr(pipeline.component_config("scheduler")))

    changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    for solver, scheduler in (("dpm++", DPMSolverMultistepScheduler), ("ddim", DDIMScheduler)):
        ours = our_image(backend_class, tiny_sd2_pipeline, solver, rescaled)
        assert ours.std() > 5, "a flat picture would prove nothing"
        assert np.abs(ours - diffusers_image(tiny_sd2_pipeline, scheduler, **changes)).max() <= 2
        for name in changes:
            less = {key: value for key, value in changes.items() if key != name}
            assert np.abs(ours - diffusers_image(tiny_sd2_pipeline, scheduler, **less)).max() > 2, name

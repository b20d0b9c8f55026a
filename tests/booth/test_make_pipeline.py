"""The pipelines with random weights that other tests and benchmarks stand on."""

import json
import shutil
import stat

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from make_pipeline import SIZES, WORDS, build_networks, build_scheduler, build_tokenizer, make_pipeline
from safetensors.torch import load_file
from transformers import CLIPTokenizer

PROMPTS = ["a photo of a dog", "Zürich 東京 dog's 1234 <|endoftext|> !?", "qqxzj", ""]


@pytest.fixture(scope="module")
def loaded(tiny_pipeline):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def weights(folder):
    files = sorted(folder.glob("*/*.safetensors"))
    return {(file.parent.name, key): tensor for file in files for key, tensor in load_file(file).items()}


def test_files_are_those_of_a_hub_repository(tiny_pipeline):
    assert sorted(str(path.relative_to(tiny_pipeline)) for path in tiny_pipeline.rglob("*") if path.is_file()) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert len({stat.S_IMODE(path.stat().st_mode) for path in tiny_pipeline.rglob("*.*")}) == 1
    assert all(key.startswith("text_model.") for key in load_file(tiny_pipeline / "text_encoder/model.safetensors"))


def test_scheduler_keeps_every_published_key(tiny_pipeline):
    config = json.loads((tiny_pipeline / "scheduler/scheduler_config.json").read_text())
    expected = {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    expected |= {"beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "prediction_type": "epsilon"}
    expected |= {"clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True}
    assert expected.items() <= config.items()


def test_seed_decides_the_weights_and_nothing_else_is_drawn(tiny_pipeline, tmp_path):
    state = torch.random.get_rng_state()
    same, other = make_pipeline("tiny", tmp_path / "same"), make_pipeline("tiny", tmp_path / "other", seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    for file in same.glob("*/*.safetensors"):
        assert file.read_bytes() == (tiny_pipeline / file.relative_to(same)).read_bytes(), file
    first, second = weights(tiny_pipeline), weights(other)
    assert not any(torch.equal(first[key], second[key]) for key in first)


def test_no_weight_is_exactly_zero_or_one(tiny_pipeline):
    for key, tensor in weights(tiny_pipeline).items():
        assert not ((tensor == 0) | (tensor == 1)).any(), key


def test_draws_images_that_follow_seed_and_prompt(loaded):
    def draw(prompt, seed):
        generator = torch.Generator().manual_seed(seed)
        return loaded(prompt, num_inference_steps=4, generator=generator, output_type="np").images[0]

    image = draw("a photo of a dog", 0)
    assert image.shape == (64, 64, 3)
    assert 0.1 < image.std() < 0.35
    assert ((image == 0) | (image == 1)).mean() < 0.2
    assert np.abs(image - draw("a photo of a dog", 1)).mean() > 0.1
    assert np.abs(image - draw("a photo of a cat", 0)).mean() > 1e-4


def test_latents_of_images_have_unit_scale(loaded):
    pixels = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(5)) * 2 - 1
    with torch.no_grad():
        posterior = loaded.vae.encode(pixels).latent_dist
    assert 0.3 < posterior.mean.std() * loaded.vae.config.scaling_factor < 3
    assert 0.01 < posterior.std.mean() < 1


def test_words_are_single_tokens_and_everything_tokenizes(loaded):
    tokenizer = loaded.tokenizer
    start, end = SIZES["tiny"]["text_encoder"]["vocab_size"] - 2, SIZES["tiny"]["text_encoder"]["vocab_size"] - 1
    assert tokenizer.model_max_length == 77
    assert tokenizer.pad_token_id == end
    for word in WORDS:
        ids = tokenizer(word).input_ids
        assert len(ids) == 3 and ids[0] == start and ids[2] == end, word
    assert len(set(tokenizer(" ".join(WORDS)).input_ids)) == len(set(WORDS)) + 2
    rare = tokenizer("qqxzj 東京").input_ids
    assert end not in rare[:-1]
    assert tokenizer.decode(rare, skip_special_tokens=True) == "qqxzj 東京"


def test_vocabulary_and_merges_alone_tokenize_the_same(loaded, tiny_pipeline, tmp_path):
    folder = tmp_path / "tokenizer"
    shutil.copytree(tiny_pipeline / "tokenizer", folder)
    (folder / "tokenizer.json").unlink()
    assert CLIPTokenizer.from_pretrained(folder)(PROMPTS).input_ids == loaded.tokenizer(PROMPTS).input_ids


def test_full_vocabulary_ends_as_published():
    tokenizer = build_tokenizer(49408, **SIZES["sd15"]["tokenizer"])
    assert len(tokenizer) == 49408
    assert tokenizer("").input_ids == [49406, 49407]


@pytest.mark.parametrize(
    ("size", "published"),
    [
        ("sd15", {"unet": 859520964, "vae": 83653863, "text_encoder": 123060480}),
        ("sd21-512", {"unet": 865910724, "vae": 83653863, "text_encoder": 340387840}),
        ("sd21-768", {"unet": 865910724, "vae": 83653863, "text_encoder": 340387840}),
    ],
)
def test_full_sizes_have_the_published_parameters(size, published):
    with torch.device("meta"):
        networks = build_networks(size)
    counts = {name: sum(parameter.numel() for parameter in network.parameters()) for name, network in networks.items()}
    assert counts == published


# ------------------------------------------------------------------------------------- Stable Diffusion 2


def test_diffusers_loads_stable_diffusion_2(tiny_sd2_pipeline):
    loaded = StableDiffusionPipeline.from_pretrained(tiny_sd2_pipeline)
    classes = {name: type(part).__name__ for name, part in loaded.components.items() if part is not None}
    assert classes == {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "scheduler": "DDIMScheduler",
    }
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    assert loaded.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.heads == 2
    assert loaded.unet.mid_block.attentions[0].transformer_blocks[0].attn1.heads == 4
    assert isinstance(loaded.unet.mid_block.attentions[0].proj_in, torch.nn.Linear)
    assert loaded.text_encoder.config.hidden_act == "gelu"
    widths = loaded.unet.config.cross_attention_dim, SIZES["tiny"]["unet"]["cross_attention_dim"]
    assert widths[0] == loaded.text_encoder.config.hidden_size != widths[1], "no width of the other family fits"
    assert loaded.tokenizer(["dog"], padding="max_length").input_ids[0][3:] == [0] * 74, "padded with '!'"


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("sd15", ("PNDMScheduler", "epsilon", 512, False)),
        ("sd21-512", ("PNDMScheduler", "epsilon", 512, False)),
        ("sd21-768", ("DDIMScheduler", "v_prediction", 768, True)),
        ("tiny-sd2", ("DDIMScheduler", "v_prediction", 64, True)),
    ],
)
def test_what_the_sizes_predict(size, expected):
    scheduler, unet = build_scheduler(SIZES[size]["scheduler"]), SIZES[size]["unet"]
    config, upcasts = scheduler.config, unet.get("upcast_attention", False)
    assert (type(scheduler).__name__, config.prediction_type, unet["sample_size"] * 8, upcasts) == expected
    published = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    published |= {"num_train_timesteps": 1000, "clip_sample": False, "set_alpha_to_one": False}
    assert published.items() <= config.items()

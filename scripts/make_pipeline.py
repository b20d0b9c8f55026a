"""Make a Stable Diffusion 1.x, 2.x or XL pipeline folder with random weights.

    python scripts/make_pipeline.py --size tiny --out tiny             # 17 MB: tests, dry runs on a laptop
    python scripts/make_pipeline.py --size tiny-one-level --out one-level    # like tiny, a UNet of one level
    python scripts/make_pipeline.py --size tiny-sd2 --out tiny-sd2     # 18 MB: like tiny, but Stable Diffusion 2
    python scripts/make_pipeline.py --size sd15 --out sd15             # 4.3 GB: the real shapes, for timing
    python scripts/make_pipeline.py --size sd21-512 --out sd21-512     # 5.2 GB: 2.1 base; predicts the noise
    python scripts/make_pipeline.py --size sd21-768 --out sd21-768     # 5.2 GB: 2.1; predicts the velocity
    python scripts/make_pipeline.py --size tiny-sdxl --out tiny-sdxl   # 20 MB: like tiny, but Stable Diffusion XL
    python scripts/make_pipeline.py --size sdxl --out sdxl             # 13.9 GB: XL base 1.0

The folder has the same files as a hub repository of its family: `diffusers.DiffusionPipeline.from_pretrained`
loads it and makes meaningless pictures. Weights and tokenizer are made here; nothing is downloaded.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
TEXT_ENCODERS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}

# Each of these words is one token; all other words are split into smaller pieces, down to single bytes.
WORDS = """
a an the of in on at by to for from with without and or is as under over near behind beside between inside
front top photo picture image painting drawing sketch rendering illustration portrait close up closeup
cropped good bad cool nice small large big tiny old new young clean dirty weird rare bright dark blurry
detailed beautiful cute high low quality resolution style art oil watercolor pencil digital one two three
four my your his her their this that it person man woman boy girl child face hand dog puppy cat kitten bird
horse cow sheep bear fox rabbit lion tiger fish robot toy plush doll car truck bus train plane boat bike
house building tower castle bridge street road city village tree flower grass leaf forest mountain hill
beach sea ocean river lake sky cloud sun moon star snow rain fire water sand stone wood metal glass table
chair bed sofa floor wall window door room kitchen garden park field farm backpack bag cup mug bowl plate
bottle can candle clock vase book shoe boot sneaker hat shirt dress glasses sunglasses wearing sitting
standing running walking sleeping jumping swimming looking holding playing eating red green blue yellow
orange purple pink black white brown grey gold silver shiny wet
""".split()  # noqa: SIM905

_SD15_UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": (
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "act_fn": "silu",
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
}
_SD15_VAE = {
    "sample_size": 512,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "act_fn": "silu",
    "scaling_factor": 0.18215,
}
_SD15_TEXT_ENCODER = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "bos_token_id": 0,  # these three differ from the tokenizer's ids, as in the published model
    "eos_token_id": 2,
    "pad_token_id": 1,
}

_SD15_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "clip_sample": False,  # not an argument of PNDM, but it is in the published scheduler_config.json
}
_SD15 = {
    "unet": _SD15_UNET,
    "vae": _SD15_VAE,
    "text_encoder": _SD15_TEXT_ENCODER,
    "tokenizer": {"pad_token": END},
    "scheduler": _SD15_SCHEDULER,
}

_SD21_512 = {
    "unet": _SD15_UNET
    | {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),  # the number of heads; each has 64 features on every level
        "use_linear_projection": True,
    },
    "vae": _SD15_VAE | {"sample_size": 768},  # also in the model for 512 pixels
    "text_encoder": _SD15_TEXT_ENCODER
    | {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "projection_dim": 512,
        "num_hidden_layers": 23,  # OpenCLIP ViT-H has 24; Stable Diffusion 2 uses the output of the last but one
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
    "tokenizer": {"pad_token": "!"},
    "scheduler": _SD15_SCHEDULER,
}
_SD21_768 = _SD21_512 | {
    "unet": _SD21_512["unet"] | {"sample_size": 96, "upcast_attention": True},
    "scheduler": {key: value for key, value in _SD15_SCHEDULER.items() if key != "skip_prk_steps"}
    | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
}

_SDXL = {
    "unet": _SD15_UNET
    | {
        "sample_size": 128,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 1280 + 6 * 256,
    },
    "vae": _SD15_VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    "text_encoder": _SD15_TEXT_ENCODER,
    "text_encoder_2": _SD15_TEXT_ENCODER
    | {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "projection_dim": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "hidden_act": "gelu",
    },
    "tokenizer": {"pad_token": END},
    "tokenizer_2": {"pad_token": "!"},
    "scheduler": {
        "_class_name": "EulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
        "interpolation_type": "linear",
        "timestep_spacing": "leading",
        "steps_offset": 1,
    },
}

_TINY_UNET = {
    "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (64, 128),
    "layers_per_block": 1,
}
_ONE_LEVEL = {  # compiles in half the time
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "block_out_channels": (64,),
}
_TINY_VAE = {
    "sample_size": 64,
    "block_out_channels": (32, 32, 64, 64),
    "layers_per_block": 1,
    "norm_num_groups": 16,
}
_TINY_TEXT_ENCODER = {"vocab_size": 1024, "num_hidden_layers": 2, "intermediate_size": 128}

# size -> component -> constructor arguments
SIZES = {
    "sd15": _SD15,
    "sdxl": _SDXL,
    "sd21-512": _SD21_512,
    "sd21-768": _SD21_768,
    "tiny": {
        "unet": _SD15_UNET | _TINY_UNET | {"cross_attention_dim": 64},
        "vae": _SD15_VAE | _TINY_VAE,
        "text_encoder": _SD15_TEXT_ENCODER
        | _TINY_TEXT_ENCODER
        | {"hidden_size": 64, "projection_dim": 64, "num_attention_heads": 4},
        "tokenizer": _SD15["tokenizer"],
        "scheduler": _SD15_SCHEDULER,
    },
    "tiny-sd2": {
        "unet": _SD21_768["unet"] | _TINY_UNET | {"cross_attention_dim": 96, "attention_head_dim": (2, 4)},
        "vae": _SD21_768["vae"] | _TINY_VAE,
        "text_encoder": _SD21_768["text_encoder"]
        | _TINY_TEXT_ENCODER
        | {"hidden_size": 96, "projection_dim": 48, "num_attention_heads": 6},
        "tokenizer": _SD21_768["tokenizer"],
        "scheduler": _SD21_768["scheduler"],
    },
}
SIZES["tiny-sdxl"] = _SDXL | {
    "unet": _SDXL["unet"]
    | _TINY_UNET
    | {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 2),
        "cross_attention_dim": 64 + 96,
        "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": 48 + 6 * 16,
    },
    "vae": _SDXL["vae"] | _TINY_VAE,
    "text_encoder": SIZES["tiny"]["text_encoder"],
    "text_encoder_2": _SDXL["text_encoder_2"]
    | _TINY_TEXT_ENCODER
    | {"hidden_size": 96, "projection_dim": 48, "num_attention_heads": 6},
}
SIZES["tiny-one-level"] = SIZES["tiny"] | {"unet": SIZES["tiny"]["unet"] | _ONE_LEVEL}


def make_pipeline(size: str, out: str | Path, seed: int = 0) -> Path:
    """Write a pipeline folder with random float32 weights and return its path.

    `size` is a key of `SIZES`. The same size and seed give the same weights; the state of torch's global generator
    does not change.
    """
    out = Path(out)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = build_networks(size)
        randomize(networks)
    write_pipeline(out, networks, build_tokenizers(size), build_scheduler(SIZES[size]["scheduler"]))
    return out


def make_configs(size: str, out: str | Path) -> Path:
    """Write a pipeline folder without weights, which is fast and enough for a plan, and return its path."""
    out = Path(out)
    with torch.device("meta"):
        networks = build_networks(size)
    tokenizers = build_tokenizers(size)
    pipeline = assemble(networks, tokenizers, build_scheduler(SIZES[size]["scheduler"]))
    pipeline.save_config(out)
    for name, part in pipeline.components.items():
        if name in networks and name not in TEXT_ENCODERS:
            part.save_config(out / name)
        elif part is not None:
            (part.config if name in TEXT_ENCODERS else part).save_pretrained(out / name)
    for name, tokenizer in tokenizers.items():
        complete_tokenizer(out / name, tokenizer.pad_token)
    return out


def write_pipeline(
    out: Path,
    networks: dict[str, torch.nn.Module],
    tokenizers: dict[str, CLIPTokenizer],
    scheduler: diffusers.SchedulerMixin,
) -> None:
    """Write a folder like published ones: all tokenizer files, keys with `text_model.`, and files that all may read."""
    assemble(networks, tokenizers, scheduler).save_pretrained(out)
    for name, tokenizer in tokenizers.items():
        complete_tokenizer(out / name, tokenizer.pad_token)
    add_text_model_prefix(out / "text_encoder" / "model.safetensors")
    for weights in out.glob("*/*.safetensors"):  # safetensors creates files with mode 0600, whatever the umask is
        weights.chmod((out / "model_index.json").stat().st_mode)


def assemble(
    networks: dict[str, torch.nn.Module], tokenizers: dict[str, CLIPTokenizer], scheduler: diffusers.SchedulerMixin
) -> DiffusionPipeline:
    parts = {**networks, **tokenizers, "scheduler": scheduler}
    if "text_encoder_2" in networks:
        return StableDiffusionXLPipeline(**parts, add_watermarker=False)
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def build_networks(size: str) -> dict[str, torch.nn.Module]:
    """Return the networks of a size, initialised by their libraries (or empty under a meta device)."""
    configs = SIZES[size]
    networks = {
        "unet": UNet2DConditionModel(**configs["unet"]).eval(),
        "vae": AutoencoderKL(**configs["vae"]).eval(),
    }
    for name, model in TEXT_ENCODERS.items():
        if name in configs:
            networks[name] = model(CLIPTextConfig(**configs[name])).eval()
    return networks


def build_tokenizers(size: str) -> dict[str, CLIPTokenizer]:
    """Return the tokenizers of a size by component."""
    configs, words = SIZES[size], SIZES[size]["text_encoder"]["vocab_size"]
    return {name: build_tokenizer(words, **configs[name]) for name in ("tokenizer", "tokenizer_2") if name in configs}


def build_scheduler(config: dict) -> diffusers.SchedulerMixin:
    return getattr(diffusers, config["_class_name"]).from_config(config)


@torch.no_grad()
def randomize(networks: dict[str, torch.nn.Module]) -> None:
    """Change weights in place, so that swapped weights show and the VAE's outputs look like latents and pictures."""
    for network in networks.values():
        perturb_vectors(network)
    vae = networks["vae"]
    scale, channels = vae.config.scaling_factor, vae.config.latent_channels
    smooth = torch.nn.functional.interpolate(torch.rand(4, 3, 8, 8) * 2 - 1, size=64, mode="bicubic")
    moments_std = torch.tensor([1 / scale] * channels + [0.5] * channels)  # mean, then log variance
    moments_mean = torch.tensor([0.0] * channels + [-4.0] * channels)
    fit_output(vae.quant_conv, lambda: vae.quant_conv(vae.encoder(smooth)), moments_std, moments_mean)
    latents = torch.randn(4, channels, 8, 8) / scale
    fit_output(vae.decoder.conv_out, lambda: vae.decode(latents).sample, torch.full([3], 0.4), torch.zeros(3))


@torch.no_grad()
def perturb_vectors(network: torch.nn.Module) -> None:
    """Add noise to biases and norm scales, in place; without it they would all be zeros or ones."""
    for parameter in network.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.05)


def fit_output(
    convolution: torch.nn.Conv2d, run: Callable[[], torch.Tensor], std: torch.Tensor, mean: torch.Tensor
) -> None:
    """Rescale the last convolution so that each channel of `run()` [b, c, h, w] has this std and mean [c]."""
    measured_std, measured_mean = torch.std_mean(run(), dim=(0, 2, 3))
    gain = std / measured_std
    convolution.weight.mul_(gain[:, None, None, None])
    convolution.bias.sub_(measured_mean).mul_(gain).add_(mean)


def add_text_model_prefix(path: Path) -> None:
    """Rename the text encoder's keys to those on the hub, with `text_model.`, which transformers 5 leaves out."""
    tensors = {f"text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Return byte-pair merges, in order, with which each (lower-case ASCII) word becomes one token; `</w>` ends it."""
    merges = []
    spellings = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))]
    while pairs := Counter(pair for spelling in spellings for pair in pairwise(spelling)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        spellings = [merge(spelling, best) for spelling in spellings]
    return merges


def merge(spelling: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for token in spelling:
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    return merged


def build_tokenizer(vocab_size: int, pad_token: str) -> CLIPTokenizer:
    """Return a CLIP tokenizer that knows `WORDS` and has exactly `vocab_size` entries."""
    merges = learn_merges(WORDS)
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet), *dict.fromkeys(a + b for a, b in merges)]
    # Unused entries fill the text encoder's vocabulary; start and end are its last two entries, as in any CLIP.
    tokens += [f"<|unused{i}|>" for i in range(vocab_size - len(tokens) - 2)] + [START, END]
    assert len(tokens) == vocab_size, f"{len(tokens)} tokens do not fit a vocabulary of {vocab_size}"
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad_token, model_max_length=77)


def complete_tokenizer(folder: Path, pad_token: str) -> None:
    """Add the tokenizer files that published pipelines and transformers 4 have beside tokenizer.json."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    write_json(folder / "vocab.json", model["vocab"])
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special = {
        "bos_token": {"content": START, **flags},
        "eos_token": {"content": END, **flags},
        "unk_token": {"content": END, **flags},
        "pad_token": pad_token,
    }
    write_json(folder / "special_tokens_map.json", special)
    config = {
        "add_prefix_space": False,
        "bos_token": {"__type": "AddedToken", **special["bos_token"]},
        "do_lower_case": True,
        "eos_token": {"__type": "AddedToken", **special["eos_token"]},
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": pad_token,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": {"__type": "AddedToken", **special["unk_token"]},
    }
    write_json(folder / "tokenizer_config.json", config)


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-weights", action="store_true", help="write only configs, for `jaxbooth plan`")
    arguments = parser.parse_args()
    if arguments.without_weights:
        print(make_configs(arguments.size, arguments.out))
    else:
        print(make_pipeline(arguments.size, arguments.out, arguments.seed))

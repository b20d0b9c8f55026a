"""The description of a single-file checkpoint: ModelSpec metadata, and the .yaml that WebUIs look for beside it.

The metadata are those of the Stability.AI Model Metadata Standard, version 1.0.1 (github.com/Stability-AI/ModelSpec):
strings under `modelspec.` in the header. The .yaml is a config of the original code. It tells WebUIs that a model
predicts the velocity, and a model that predicts the noise does not need it; its name is the checkpoint's.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from booth.common.errors import UserError
from booth.models.ldm_layout import Configs, is_open_clip
from booth.models.safetensors_file import UNKNOWN_HASH

ARCHITECTURE = "modelspec.architecture"
PREDICTION = "modelspec.prediction_type"
RESOLUTION = "modelspec.resolution"
VERSION = "1.0.1"
_CODE = "https://github.com/Stability-AI/stablediffusion"  # whose variables the keys are
_SCHEDULES = {"scaled_linear": "linear", "linear": "sqrt_linear"}  # diffusers' name -> the original's
_USUAL_BETAS = ("scaled_linear", 0.00085, 0.012, None)
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}  # diffusers' word -> ModelSpec's


def metadata(configs: Configs, title: str, resolution: int | None, trigger_phrase: str = "") -> dict[str, str]:
    """Return the metadata for a file's header; the hash is a placeholder until the file is sealed.

    `configs` are those of unet, vae, text_encoder and scheduler. Without a `resolution` the UNet's own is written.
    """
    side = resolution or native_resolution(configs)
    prediction = prediction_of(configs["scheduler"])
    second = "stable-diffusion-v2-768-v" if prediction == "v" else "stable-diffusion-v2-512"
    found = {
        "modelspec.sai_model_spec": VERSION,
        ARCHITECTURE: second if is_open_clip(configs["text_encoder"]) else "stable-diffusion-v1",
        "modelspec.implementation": _CODE,
        "modelspec.title": title,
        RESOLUTION: f"{side}x{side}" if side else "",
        "modelspec.date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **UNKNOWN_HASH,
        PREDICTION: prediction,
        "modelspec.trigger_phrase": trigger_phrase,
    }
    return {name: value for name, value in found.items() if value}


def native_resolution(configs: Configs) -> int | None:
    """Return the side, in pixels, of the pictures that the UNet was made for; None if its config does not say it."""
    size = configs["unet"].get("sample_size")
    return size * 2 ** (len(configs["vae"]["block_out_channels"]) - 1) if isinstance(size, int) else None


def prediction_of(scheduler: Mapping[str, Any]) -> str:
    """Return what the UNet predicts, in ModelSpec's words: `epsilon` or `v`. Raise UserError for anything else."""
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise UserError(f"prediction_type={prediction!r} has no single-file form; it must be epsilon or v_prediction")
    return PREDICTIONS[prediction]


def said_prediction(file: Path, said: Mapping[str, str]) -> str | None:
    """Return what a file's UNet predicts by its metadata or by the .yaml beside it; None if neither says it."""
    if said.get(PREDICTION) in PREDICTIONS.values():
        return said[PREDICTION]
    if said.get(ARCHITECTURE, "").startswith("stable-diffusion-v2"):
        return "v" if said[ARCHITECTURE].startswith("stable-diffusion-v2-768-v") else "epsilon"
    try:
        params = yaml.safe_load(config_path(file).read_text(encoding="utf-8"))["model"]["params"]
        return "v" if params.get("parameterization") == "v" else "epsilon"
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError, yaml.YAMLError):
        return None


def config_path(file: Path) -> Path:
    """Return the path where WebUIs look for the config of a file."""
    return file.with_suffix(".yaml")


def original_config(configs: Configs, resolution: int | None) -> str | None:
    """Return the text of the .yaml; None for a model that predicts the noise with the usual schedule, which WebUIs
    assume.

    Raise UserError if the original code cannot express the model.
    """
    unet, vae, text, scheduler = (configs[name] for name in ("unet", "vae", "text_encoder", "scheduler"))
    betas = tuple(scheduler.get(name) for name in ("beta_schedule", "beta_start", "beta_end", "trained_betas"))
    if betas[0] not in _SCHEDULES or betas[3] is not None:
        raise UserError(
            f"beta_schedule={betas[0]!r} has no single-file form; it must be one of {', '.join(_SCHEDULES)}"
        )
    if prediction_of(scheduler) == "epsilon" and betas == _USUAL_BETAS:
        return None
    kinds = unet["down_block_types"]
    side = resolution or native_resolution(configs) or 512
    embedder: dict[str, Any] = {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"}
    if is_open_clip(text):
        embedder = {
            "target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
            "params": {"freeze": True, "layer": "penultimate"},
        }
    params = {
        "parameterization": "v" if prediction_of(scheduler) == "v" else "eps",
        "beta_schedule": _SCHEDULES[betas[0]],
        "linear_start": betas[1],
        "linear_end": betas[2],
        "timesteps": scheduler.get("num_train_timesteps", 1000),
        "num_timesteps_cond": 1,
        "log_every_t": 200,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "conditioning_key": "crossattn",
        "cond_stage_trainable": False,
        "image_size": side // 2 ** (len(vae["block_out_channels"]) - 1),
        "channels": unet["in_channels"],
        "scale_factor": vae.get("scaling_factor", 0.18215),
        "monitor": "val/loss_simple_ema",
        "use_ema": False,
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": {
                "image_size": 32,  # nothing reads it
                "in_channels": unet["in_channels"],
                "out_channels": unet["out_channels"],
                "model_channels": unet["block_out_channels"][0],
                "channel_mult": _multiples(unet["block_out_channels"]),
                "num_res_blocks": unet["layers_per_block"],
                "attention_resolutions": [2**level for level, kind in enumerate(kinds) if "CrossAttn" in kind][::-1],
                **_heads(unet),
                "use_spatial_transformer": True,
                "use_linear_in_transformer": bool(unet.get("use_linear_projection", False)),
                "transformer_depth": 1,
                "context_dim": unet["cross_attention_dim"],
                "use_checkpoint": True,
                "use_fp16": True,
                "legacy": False,
            },
        },
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {
                "embed_dim": vae["latent_channels"],
                "monitor": "val/rec_loss",
                "ddconfig": {
                    "double_z": True,
                    "z_channels": vae["latent_channels"],
                    "resolution": 256,
                    "in_channels": vae["in_channels"],
                    "out_ch": vae["out_channels"],
                    "ch": vae["block_out_channels"][0],
                    "ch_mult": _multiples(vae["block_out_channels"]),
                    "num_res_blocks": vae["layers_per_block"],
                    "attn_resolutions": [],
                    "dropout": 0.0,
                },
                "lossconfig": {"target": "torch.nn.Identity"},
            },
        },
        "cond_stage_config": embedder,
    }
    model = {"base_learning_rate": 1.0e-4, "target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}
    return yaml.safe_dump({"model": model}, sort_keys=False)


def _heads(unet: Mapping[str, Any]) -> dict[str, int]:
    """Return the setting of the attention heads in the original code.

    diffusers' `attention_head_dim` is a number of heads, one for all levels or one for each; the original has one
    number for all levels, either of heads or of channels per head.
    """
    heads, widths = unet.get("attention_head_dim", 8), unet["block_out_channels"]
    if isinstance(heads, int):
        return {"num_heads": heads}
    channels = {width // number for width, number in zip(widths, heads, strict=True)}
    if len(channels) > 1:
        raise UserError(f"attention_head_dim={list(heads)} has no single-file form: heads differ in their channels")
    return {"num_head_channels": channels.pop()}


def _multiples(widths: list[int]) -> list[int]:
    if any(width % widths[0] for width in widths):
        raise UserError(
            f"block_out_channels={list(widths)} have no single-file form: they must be multiples of the first"
        )
    return [width // widths[0] for width in widths]

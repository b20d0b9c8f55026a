"""The metadata of a LoRA file.

    lora_adapter_metadata   JSON of `peft.LoraConfig`s, as diffusers writes and reads it
    booth_before_folding    the same JSON from before B was multiplied by alpha / rank, so that this can be undone
    ss_*                    as kohya's trainer writes them (github.com/kohya-ss/sd-scripts, library/train_util.py and
                            train_network.py): those that WebUIs show, or sort files by
    modelspec.*             the Stability.AI Model Metadata Standard, version 1.0.1 (github.com/Stability-AI/ModelSpec)

An entry whose value is not known is left out.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from booth.common.errors import UserError
from booth.models.adapters import LowRank
from booth.models.modelspec import PREDICTION, PREDICTIONS
from booth.models.pipeline import PipelineDir
from booth.models.safetensors_file import HASH, packed

_PEFT, _BEFORE = "lora_adapter_metadata", "booth_before_folding"
_DATE, _ARGUMENTS, _VERSION = "modelspec.date", "ss_network_args", "ss_base_model_version"
_CONTEXT_WIDTHS = {768: "sd1", 1024: "sd2"}  # of the published models


@dataclass(frozen=True)
class About:
    """The metadata besides rank and alpha. Empty or None means that a value is not known and is left out."""

    name: str  # the name that WebUIs use in prompts
    title: str
    family: str = ""  # the name of a family of `booth.models.family`
    prediction: str = ""  # epsilon or v, ModelSpec's words
    side: int | None = None  # pixels that it was trained with
    base: str = ""  # the model it was trained from
    trigger_phrase: str = ""
    kept: Mapping[str, str] | None = None  # the metadata of the file that this one is converted from


def about_file(metadata: Mapping[str, str], layers: Mapping[str, LowRank], name: str, title: str, phrase: str) -> About:
    """Return what is known about a file to convert: its metadata, and the family by the cross-attention's width."""
    widths = {
        update.down.shape[1] for layer, update in layers.items() if layer.endswith((".attn2.to_k", ".attn2.to_v"))
    }
    family = _CONTEXT_WIDTHS.get(widths.pop(), "") if len(widths) == 1 else ""
    kept = {key: value for key, value in metadata.items() if key.startswith(("ss_", "modelspec."))}
    prediction = kept.get(PREDICTION, "v" if kept.get(_VERSION, "").endswith("_v") else "")
    if prediction not in PREDICTIONS.values():
        prediction = ""
    title = title or kept.get("modelspec.title", name)
    return About(name, title, family, prediction, trigger_phrase=phrase, kept=kept)


def about_run(config: Any, pipeline: PipelineDir, name: str, title: str, phrase: str) -> About:
    """Return what is known about the LoRA of a run."""
    prediction = pipeline.component_config("scheduler").get("prediction_type", "epsilon")
    return About(
        name,
        title or name,
        family=pipeline.family.name,
        prediction=PREDICTIONS.get(prediction, ""),
        side=config.data.resolution,
        base=Path(config.model.source).name,
        trigger_phrase=phrase,
    )


def kohya(layers: Mapping[str, LowRank], about: About) -> dict[str, str]:
    """Return the metadata of a file in kohya's layout, without the hash."""
    convs = [update for update in layers.values() if update.shape[2:] not in ((), (1, 1))]
    others = [update for update in layers.values() if update.shape[2:] in ((), (1, 1))]
    sizes = {f"conv_{name}": value for name, value in _sizes(convs).items()} if convs else {}
    kept = about.kept or {}
    arguments = {**_arguments(kept), **sizes}
    known = {
        "ss_network_module": "networks.lora",
        **{f"ss_network_{name}": value for name, value in _sizes(others or convs).items()},
        _ARGUMENTS: json.dumps(arguments),
        "ss_output_name": about.name,
        "ss_sd_model_name": about.base,
        **_version(about),
        "ss_tag_frequency": _tags(about.trigger_phrase),
        **modelspec(about),
    }
    return {**kept, **{name: value for name, value in known.items() if value}}


def modelspec(about: About) -> dict[str, str]:
    second = "stable-diffusion-v2-768-v" if about.prediction == "v" else "stable-diffusion-v2-512"
    architecture = {"sd1": "stable-diffusion-v1", "sd2": second if about.prediction else ""}.get(about.family)
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora" if architecture else "",
        "modelspec.implementation": "diffusers",  # whose names the keys are, in both layouts
        "modelspec.title": about.title,
        "modelspec.resolution": f"{about.side}x{about.side}" if about.side else "",
        _DATE: (about.kept or {}).get(_DATE, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")),
        PREDICTION: about.prediction,
        "modelspec.trigger_phrase": about.trigger_phrase,
    }


def sealed(content: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file with ModelSpec's hash: 0x and the sha256 of everything after the header."""
    plain = save(dict(content))
    tensors = plain[8 + int.from_bytes(plain[:8], "little") :]
    return packed(content, {**metadata, HASH: f"0x{hashlib.sha256(tensors).hexdigest()}"})


def peft(layers: Mapping[str, LowRank], before: Mapping[str, LowRank]) -> dict[str, str]:
    """Return the metadata of a file in PEFT's layout.

    `before` are the layers from before B was multiplied by alpha / rank; their alphas are written too if they differ.
    """
    said = {_PEFT: _settings(layers)}
    if any(update.alpha != before[layer].alpha for layer, update in layers.items()):
        said[_BEFORE] = _settings(before)
    return said


def _settings(layers: Mapping[str, LowRank]) -> str:
    """Return, as JSON, the settings of a `peft.LoraConfig` of each component, prefixed with the component's name.

    They give the most common rank and alpha, and those of all other layers by name.
    """
    settings: dict[str, Any] = {}
    for component in sorted({layer.partition(".")[0] for layer in layers}):
        # These match the ends of names: in some versions of transformers the text encoder's layers lack text_model.
        own = {
            layer.removeprefix(f"{component}.").removeprefix("text_model."): update
            for layer, update in layers.items()
            if layer.startswith(f"{component}.")
        }
        rank = Counter(update.rank for update in own.values()).most_common(1)[0][0]
        alpha = Counter(update.alpha for update in own.values()).most_common(1)[0][0]
        settings |= {
            f"{component}.r": rank,
            f"{component}.lora_alpha": alpha,
            f"{component}.target_modules": list(own),
            # They are written even if they are empty: diffusers before 0.40 requires the first.
            f"{component}.rank_pattern": {name: update.rank for name, update in own.items() if update.rank != rank},
            f"{component}.alpha_pattern": {name: update.alpha for name, update in own.items() if update.alpha != alpha},
        }
    return json.dumps(settings, sort_keys=True)


def peft_settings(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings in a file in PEFT's layout, {} if it has none. Raise UserError if they are broken."""
    return _read_settings(path, metadata, _PEFT)


def settings_before(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings from before B was multiplied by alpha / rank; {} if it was not, or another program did it."""
    return _read_settings(path, metadata, _BEFORE)


def _read_settings(path: Path, metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    try:
        return dict(json.loads(metadata.get(key, "{}")))
    except (RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its {key} is broken ({error}); download it again") from error


def peft_alpha(settings: Mapping[str, Any], layer: str, rank: int) -> float:
    """Return the alpha of a layer by the settings of `peft.LoraConfig`s, prefixed with the component's name or not.

    It is the rank if they do not give it, as in diffusers. Raise AttributeError, TypeError or ValueError if the
    settings are broken.
    """
    component, _, name = layer.partition(".")
    own = {key.removeprefix(f"{component}."): value for key, value in settings.items()}
    if own.get("use_dora"):
        raise ValueError("DoRA, which is not supported")
    patterns = {end.lstrip("^"): alpha for end, alpha in (own.get("alpha_pattern") or {}).items()}
    listed = next((alpha for end, alpha in patterns.items() if name == end or name.endswith(f".{end}")), None)
    alpha = float(own.get("lora_alpha", rank) if listed is None else listed)
    return alpha * math.sqrt(rank) if own.get("use_rslora") else alpha  # arXiv 2312.03732: alpha / sqrt(rank)


def _sizes(updates: list[LowRank]) -> dict[str, str]:
    """Return rank and alpha as kohya's trainer writes them."""
    ranks, alphas = {update.rank for update in updates}, {update.alpha for update in updates}
    return {
        "dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "alpha": str(alphas.pop()) if len(alphas) == 1 else "Dynamic",
    }


def _arguments(kept: Mapping[str, str]) -> dict[str, Any]:
    """Return the network's arguments from the metadata of a converted file; {} if they are broken."""
    try:
        return dict(json.loads(kept.get(_ARGUMENTS, "{}")))
    except (RecursionError, TypeError, ValueError):
        return {}


def _version(about: About) -> dict[str, str]:
    if not about.family:
        return {}
    suffix = "_v" if about.prediction == "v" else ""
    return {
        "ss_v2": str(about.family == "sd2"),
        _VERSION: ("sd_v2" if about.family == "sd2" else "sd_v1") + suffix,
    }


def _tags(phrase: str) -> str:
    """Return the tags that WebUIs offer for prompts: folder -> tag -> how often it occurs."""
    tags = [tag.strip() for tag in phrase.split(",") if tag.strip()]
    return json.dumps({"instance": Counter(tags)}) if tags else ""

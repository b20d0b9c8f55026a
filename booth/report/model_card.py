"""The README.md of a pushed model, which its page on the hub shows: https://huggingface.co/docs/hub/model-cards.

It says what the model is, how to use it and how it was made, but nothing about the machine it was made on.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from booth.config.concepts import concepts_of
from booth.config.fields import FIELDS
from booth.config.sources import EMBEDDED
from booth.data.prompts import instance_prompts
from booth.models import lora_file
from booth.report.data import Report

_ALWAYS = ("train.steps", "train.batch_size", "train.learning_rate", "data.resolution")
# Settings that are folders and files of a machine, also in a concept.
_NEVER = {"concepts", *(field.name for field in FIELDS if field.is_path)}


@dataclass(frozen=True)
class Shown:
    """The further files that are pushed, by their names in the repository; empty for a file that is not pushed."""

    repository: str
    step: int  # the number of updates of the pushed weights
    license: str = ""
    preview: str = ""
    before_after: str = ""
    photos: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()


def mark(run_id: str) -> str:
    """Return the text by which a card says which run it belongs to."""
    return f"<!-- booth run {run_id} -->"


def card(report: Report, shown: Shown, run_id: str) -> str:
    """Return README.md in Markdown, after the hub's metadata in YAML."""
    metadata = yaml.safe_dump(
        {key: value for key, value in _metadata(report, shown).items() if value},
        sort_keys=False, allow_unicode=True, width=float("inf"),
    )  # fmt: skip
    blocks = [f"---\n{metadata}---", *_body(report, shown), mark(run_id)]
    return "\n\n".join(blocks) + "\n"


def prompts_of(report: Report) -> list[str]:
    """Return the prompts of previews and of this card, first that of the subject."""
    config = report.config
    captions = report.manifest.get("captions", {})
    taught = instance_prompts(config) or [str(caption) for caption in list(captions.values())[:1]]
    classes = [concept.config.prior.prompt for concept in concepts_of(config) if concept.has_prior]
    return list(dict.fromkeys(prompt for prompt in config.samples.prompts or [*taught, *classes] if prompt))


def _is_lora(report: Report) -> bool:
    return bool(report.config.adapter.kind == "lora")


def _metadata(report: Report, shown: Shown) -> dict[str, Any]:
    base = report.origins.get("model", {}).get("id", "")
    relation = "adapter" if _is_lora(report) else "finetune"
    kinds = [*(["lora"] if _is_lora(report) else []), *(["textual_inversion"] if shown.tokens else [])]
    prompts = prompts_of(report)
    with_picture = {"output": {"url": shown.preview}} if shown.preview else {}
    # A dataset leads to the photos, so it is named only if they are shown.
    dataset = report.origins.get("dataset", {}).get("id", "") if shown.photos else ""
    return {
        "license": shown.license,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "base_model": base,
        "base_model_relation": relation if base else "",
        "datasets": [dataset] if dataset else [],
        "instance_prompt": ", ".join(instance_prompts(report.config)),
        "tags": ["text-to-image", "dreambooth", "stable-diffusion", "diffusers", *kinds],
        "widget": [{"text": prompt, **(with_picture if prompt == prompts[0] else {})} for prompt in prompts],
    }


def _body(report: Report, shown: Shown) -> Iterator[str]:
    """Yield blocks of Markdown."""
    what = "LoRA weights for" if _is_lora(report) else "A text-to-image pipeline, fine-tuned from"
    yield f"# {shown.repository.partition('/')[2]}"
    yield (
        f"{what} {_base(report)}, which learned its subject with [DreamBooth](https://arxiv.org/abs/2208.12242) from"
        f" {report.pictures('instance')} photos."
    )
    if shown.preview:
        yield "<Gallery />"
    if shown.before_after:
        yield f"![Photos, and pictures of the base and of this model at the same seeds]({shown.before_after})"
    yield from ["## How to use it", f"```python\n{_example(report, shown)}\n```"]
    if taught := instance_prompts(report.config):
        yield f"What it learned is called {' and '.join(map(_code, taught))}."
    yield from ["## How it was trained", _prior(report), _listed(_settings(report, shown)), _made_with(report)]
    if shown.photos:
        yield "## Photos"
        yield "\n".join(f"![Photo {number}]({name})" for number, name in enumerate(shown.photos, start=1))
    if not shown.license:
        yield "## Licence"
        yield "Its author has not named one. In any case it must comply with the base model's licence."


def _base(report: Report) -> str:
    if origin := report.origins.get("model", {}):
        return f"[{origin['id']}](https://huggingface.co/{origin['id']}) at commit {_code(origin.get('commit', ''))}"
    return (
        "the small base that comes with booth" if report.config.model.source == EMBEDDED else "a model of its author's"
    )


def _example(report: Report, shown: Shown) -> str:
    """Return a Python example with diffusers, from loading to a picture."""
    prompt = next(iter(instance_prompts(report.config) or prompts_of(report)), "a photo")
    name = shown.repository
    classes, lines = "StableDiffusionPipeline", []
    if _is_lora(report):
        name = report.origins.get("model", {}).get("id", "FOLDER OF THE BASE")
        for folder, _, file in (name.partition("/") for name in shown.tokens):
            where = f"{_quoted(shown.repository)}, subfolder={_quoted(folder)}, weight_name={_quoted(file)}"
            lines.append(f"pipe.load_textual_inversion({where})")
        lines.append(f"pipe.load_lora_weights({_quoted(shown.repository)}, weight_name={_quoted(lora_file.FILE)})")
        if report.config.train.zero_terminal_snr:
            classes = "DDIMScheduler, StableDiffusionPipeline"
            lines += ["pipe.scheduler = DDIMScheduler.from_config(", "    pipe.scheduler.config,"
                      " rescale_betas_zero_snr=True, timestep_spacing=\"trailing\"", ")"]  # fmt: skip
    load = f"pipe = StableDiffusionPipeline.from_pretrained({_quoted(name)})"
    imports = ["import torch", f"from diffusers import {classes}"]
    made = f'pipe({_quoted(prompt)}).images[0].save("picture.png")'
    return "\n".join([*imports, "", f'{load}.to("cuda", torch.float16)', *lines, made])


def _prior(report: Report) -> str:
    classes = [concept.config.prior.prompt for concept in concepts_of(report.config) if concept.has_prior]
    if not classes:
        return "Without prior preservation."
    named = " and ".join(map(_code, dict.fromkeys(classes)))
    return (
        f"With prior preservation, of weight {report.config.prior.weight:g}: {report.pictures('prior')} class images"
        f" for {named}, so that the rest of the class stays as it was."
    )


def _settings(report: Report, shown: Shown) -> dict[str, str]:
    """Return {name: text} of the settings that readers may want to know, and of all that differ from the defaults."""
    changed = {name: pair for name, pair in report.changed.items() if name not in _NEVER}
    said = {name: _code(report.fields[name]) for name in _ALWAYS}
    said |= {name: f"{_code(value)} (default {_code(default)})" for name, (default, value) in changed.items()}
    return {**said, "train.steps": _code(shown.step)}


def _listed(items: dict[str, str]) -> str:
    return "\n".join(f"- {_code(name)}: {value}" for name, value in items.items())


def _made_with(report: Report) -> str:
    versions = report.manifest.get("versions", {})
    return f"Made with {report.package}: {', '.join(f'{name} {version}' for name, version in versions.items())}."


def _code(value: Any) -> str:
    """Return a value as one line that Markdown shows unchanged."""
    text = " ".join(str(list(value) if isinstance(value, tuple) else value).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    if not text:
        return "empty"
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"


def _quoted(text: str) -> str:
    """Return the text as a Python string."""
    return json.dumps(text, ensure_ascii=False)

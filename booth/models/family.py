"""Model families: the parts of a pipeline of each family, and how a family is recognised.

Stable Diffusion 1.x and 2.x are supported. Another family of their architecture is one more `Family` here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from booth.common.errors import UserError


@dataclass(frozen=True)
class Family:
    name: str
    title: str
    pipeline_class: str
    classes: Mapping[str, tuple[str, ...]]  # component -> the classes it may have in model_index.json
    networks: tuple[str, ...]  # the components with weights that training and sampling use
    trainable: tuple[str, ...]  # the networks that can be trained
    features: Mapping[tuple[str, str], Any]  # (component, config key) -> the value that distinguishes the family


SD1 = Family(
    name="sd1",
    title="Stable Diffusion 1.x",
    pipeline_class="StableDiffusionPipeline",
    classes={
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    },
    networks=("unet", "vae", "text_encoder"),
    trainable=("unet", "text_encoder"),
    features={
        # 1.x and 2.x have the same pipeline class but differ in these values. Widths do not tell: a model may be small.
        ("unet", "use_linear_projection"): False,
        ("text_encoder", "hidden_act"): "quick_gelu",
        # The UNet's inputs are latents, timestep and context, nothing else.
        ("unet", "in_channels"): 4,
        ("unet", "addition_embed_type"): None,
        ("unet", "class_embed_type"): None,
        ("unet", "encoder_hid_dim_type"): None,
        ("unet", "time_cond_proj_dim"): None,
        # Dropout would draw from a framework's own generator, outside the run's randomness.
        ("unet", "dropout"): 0.0,
        ("text_encoder", "attention_dropout"): 0.0,
        # A model must not choose the implementation: transformers takes a hub id here and runs the code it downloads.
        ("text_encoder", "attn_implementation"): None,
        ("text_encoder", "_attn_implementation"): None,
    },
)

# The same parts, with OpenCLIP's text encoder. The configs tell 512 from 768 pixels, and noise from velocity.
SD2 = replace(
    SD1,
    name="sd2",
    title="Stable Diffusion 2.x",
    features={
        **SD1.features,
        ("unet", "use_linear_projection"): True,
        ("text_encoder", "hidden_act"): "gelu",
    },
)

FAMILIES = (SD1, SD2)

# The libraries that a pipeline's classes come from. The third is a folder of diffusers that has the safety checker.
_LIBRARIES = ("diffusers", "transformers", "stable_diffusion")

# diffusers and transformers assume these values if a config lacks the key, as older ones do. 1.x has the same values.
_DEFAULTS = SD1.features


def detect_family(
    source: str, model_index: Mapping[str, Any], component_config: Callable[[str], Mapping[str, Any]]
) -> Family:
    """Return the family of a pipeline folder, from model_index.json and the components' configs.

    Raise UserError if no supported family fits. Its message begins with `source` and says how the pipeline differs from
    the nearest family.
    """
    _refuse_code(source, model_index)
    supported = f"supported: {', '.join(f'{family.title} ({family.pipeline_class})' for family in FAMILIES)}"
    pipeline_class = model_index.get("_class_name")
    candidates = [family for family in FAMILIES if family.pipeline_class == pipeline_class]
    if not candidates:
        raise UserError(f"{source}: {' '.join(str(pipeline_class).split())} is not supported yet; {supported}")
    differences = {family.name: _differences(family, model_index, component_config) for family in candidates}
    nearest = min(candidates, key=lambda family: len(differences[family.name]))
    if found := differences[nearest.name]:
        raise UserError(f"{source}: {' and '.join(found)}; {supported}")
    return nearest


def _refuse_code(source: str, model_index: Mapping[str, Any]) -> None:
    """Raise UserError for a class that comes from none of the libraries: diffusers would import it from the pipeline's
    own files."""
    for name, entry in model_index.items():
        if isinstance(entry, list) and len(entry) == 2 and entry[1] and entry[0] not in _LIBRARIES:
            raise UserError(
                f"{source}: model_index.json has {name}={entry!r}, code that comes with the model and is never run;"
                f" use a model whose classes are those of {' and '.join(_LIBRARIES[:2])}"
            )


def _differences(
    family: Family, model_index: Mapping[str, Any], component_config: Callable[[str], Mapping[str, Any]]
) -> list[str]:
    """Return how a pipeline differs from the family. Of a component of another class, the config is not read."""
    differences, others = [], set()
    for component, classes in family.classes.items():
        entry = model_index.get(component)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if found not in classes:
            others.add(component)
            differences.append(f"{component} is {' '.join(str(found).split())}, where {family.title} has {classes[0]}")
    for (component, key), expected in family.features.items():
        if component in others:
            continue
        found = component_config(component).get(key, _DEFAULTS[component, key])
        if found != expected:
            differences.append(f"{component}/config.json has {key}={found!r}, where {family.title} has {expected!r}")
    return differences

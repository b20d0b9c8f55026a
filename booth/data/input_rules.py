"""The inputs that the user must name (model, photos, prompts), and the complete check of a config before any work."""

from collections import Counter

from ml_collections import ConfigDict

from booth.common.errors import UserError, naming
from booth.config.choices import PLACE
from booth.config.concepts import concepts_of
from booth.config.validation import validate_settings
from booth.config.values import get
from booth.data.kohya_folders import repeated_folders


def validate(config: ConfigDict, backend: str) -> None:
    """Raise UserError for the first setting that breaks a rule, and for an input that is not named."""
    validate_settings(config, backend)
    concepts = concepts_of(config)
    for concept in concepts:
        with naming(concept.name):
            _validate_inputs(concept.config)
    if braced := [prompt for prompt in config.samples.prompts if PLACE in prompt]:
        raise UserError(f"samples.prompts has {braced[0]!r}, and previews have no captions to put there; remove it")
    folders = Counter(concept.config.instance.images for concept in concepts)
    folder, times = folders.most_common(1)[0]
    if times > 1:
        raise UserError(
            f"instance.images={folder!r} is used by {times} concepts; give each a folder of its own, or make them one"
        )


def _has_words(config: ConfigDict) -> bool:
    """Return whether the photos are in kohya's folders, whose names give the prompts."""
    return bool(repeated_folders(config.instance.images))


def _validate_inputs(config: ConfigDict) -> None:
    """Raise UserError if one concept lacks an input that it must name."""
    captioned = config.instance.captions != "none"
    for name, example in (
        ("model.source", "models/sd15"),
        ("instance.images", "photos/"),
        ("instance.prompt", "a photo of sks dog"),
    ):
        if not get(config, name).strip() and not (name == "instance.prompt" and (captioned or _has_words(config))):
            raise UserError(f"{name} is empty; set it in the config or with --config.{name}='{example}'")
    if not captioned and PLACE in config.instance.prompt:
        raise UserError(
            f"instance.prompt={config.instance.prompt!r} has a {PLACE}, and with instance.captions='none' there is"
            " nothing to put in it; set instance.captions (text, names or metadata), or remove it"
        )
    if PLACE in config.prior.prompt:
        raise UserError(
            f"prior.prompt={config.prior.prompt!r} has a {PLACE}, and class images have no captions; remove it"
        )
    if captioned and config.instance.prompt.strip() and PLACE not in config.instance.prompt:
        raise UserError(
            f"instance.prompt={config.instance.prompt!r} has no {PLACE}, in which instance.captions="
            f"{config.instance.captions!r} could be put; add it, or leave the prompt empty"
        )
    if config.prior.weight > 0 and not config.prior.prompt.strip():
        raise UserError(
            f"prior.weight={config.prior.weight} needs prior.prompt, such as 'a photo of dog';"
            " give it, or set prior.weight=0 to train without prior preservation"
        )
    if config.prior.weight > 0 and config.instance.prompt.strip() == config.prior.prompt.strip():
        raise UserError(
            f"instance.prompt={config.instance.prompt!r} is the same as prior.prompt;"
            " add an identifier, such as 'a photo of sks dog'"
        )

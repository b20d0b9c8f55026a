"""The prompts of a run's photos."""

from typing import Any

from booth.config.choices import PLACE
from booth.config.concepts import concepts_of
from booth.data.kohya_folders import repeated_folders
from booth.models.new_tokens import new_tokens, spoken


def instance_prompts(config: Any) -> list[str]:
    """Return the prompts of a run's photos, each once: prompts without captions, and the words of kohya's folders."""
    prompts: list[str] = []
    for concept in concepts_of(config):
        settings = concept.config.instance
        folders = repeated_folders(settings.images) if not settings.prompt and settings.captions == "none" else []
        prompts += [settings.prompt.replace(PLACE, "").strip(" ,"), *(folder.words for folder in folders)]
    return list(dict.fromkeys(filter(None, prompts)))


def spoken_prompt(config: Any, prefix: str = "") -> str:
    """Return the prompts of a run for use in a WebUI: without captions, and with the names of the files of new tokens
    in place of the tokens."""
    return spoken(", ".join(instance_prompts(config)), new_tokens(config), prefix).strip(" ,")

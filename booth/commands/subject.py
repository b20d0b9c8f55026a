"""The short form of `train` and `doctor`: photos, a subject and a model instead of settings.

    torchbooth train photos/ --subject "sks dog" --model ID

uses the default recipe with `auto` numbers and, in torchbooth, the memory techniques with which it fits on the GPU; or
the recipe of --config if it is given. A setting that is given as NAME=VALUE replaces one that is derived here.
"""

import argparse
import logging
import re
from pathlib import Path

from booth.common.errors import UserError
from booth.config.sources import EMBEDDED
from booth.models.embedded import subject_path

log = logging.getLogger("booth")

EXAMPLE = "example:"
EMBEDDED_CONFIG = "demo"  # the config whose numbers suit the embedded base
_ARTICLES = ("a", "an", "the")
_AUTO = (("train.steps", "auto"), ("train.learning_rate", "auto"), ("prior.count", "auto"))
_FITTING = ("memory.fit", "auto")  # torchbooth alone has it
_TO_LOOK_AT = ("samples.before_after", "true")


def short_form(package: str, options: argparse.Namespace) -> tuple[str, list[tuple[str, str]]]:
    """Return the config to begin with ("" for the defaults) and the settings that the options stand for, (name, text).

    Log the settings that are derived. Raise UserError if the options do not say enough.
    """
    given = {name for name, _ in options.overrides}
    if not options.config:
        _check_complete(options, given)
    found = []
    if options.photos:
        found.append(("instance.images", _photos(options.photos)))
    if options.model:
        found.append(("model.source", options.model))
    if options.subject:
        found += _prompts(options.subject)
    base = options.config or ""
    if not base and options.model == EMBEDDED:
        base = EMBEDDED_CONFIG
        found.append(("samples.prompts", ""))  # the config's prompts show the subject of its own example
    elif not base:
        found += [*_AUTO, *[_FITTING] * (package == "torchbooth"), _TO_LOOK_AT]
    for name, text in found:
        if name not in given and text not in ("", "auto", options.model, options.photos):
            log.info("%s=%s", name, text)
    if base and not options.config:
        log.info("--config %s, whose numbers suit model.source=%s", base, EMBEDDED)
    return base, found


def workdir(options: argparse.Namespace) -> str:
    """Return the run folder, named after the subject or else after the photos; "" if no photos are given."""
    if not options.photos:
        return ""
    named = " ".join(_words(options.subject)[1]) if options.subject else Path(options.photos.rstrip("/\\")).name
    return str(Path("runs") / (re.sub(r"\W+", "-", named).strip("-").lower() or "subject"))


def _check_complete(options: argparse.Namespace, given: set[str]) -> None:
    """Raise UserError if photos, the model, or what the photos show is missing; call this only without --config."""
    example = "photos/ --subject 'sks dog' --model ID"
    if not options.photos:
        raise UserError(f"there are neither photos nor a config; give {example}, or --config FILE")
    if not options.model and "model.source" not in given:
        raise UserError(f"--model is missing; give a pipeline's folder or hub id, or {EMBEDDED}, as in {example}")
    if not options.subject and not given & {"instance.prompt", "instance.captions"}:
        raise UserError(f"--subject is missing; give a rare word and what the subject is, as in {example}")


def _photos(given: str) -> str:
    """Return the folder of the photos, or the dataset; `example:NAME` stands for photos that come with booth."""
    return str(subject_path(given.removeprefix(EXAMPLE))) if given.startswith(EXAMPLE) else given


def _prompts(subject: str) -> list[tuple[str, str]]:
    """Return the settings for the prompts of the subject and of its class, the words after the rare word.

    Raise UserError if the subject has no class.
    """
    article, words = _words(subject)
    kind = " ".join(words[1:])
    if not kind:
        raise UserError(
            f"--subject {subject!r} must be a rare word and what the subject is, such as 'sks dog'; the pictures of"
            " that class show the model what it must not change"
        )
    if article in ("a", "an"):
        article = "an" if kind[0].lower() in "aeiou" else "a"
    of_class = f"{article} {kind}".strip()
    return [("instance.prompt", f"a photo of {' '.join(subject.split())}"), ("prior.prompt", f"a photo of {of_class}")]


def _words(subject: str) -> tuple[str, list[str]]:
    """Return the article that a subject begins with, in lower case or "", and its other words."""
    words = subject.split()
    has_article = bool(words) and words[0].lower() in _ARTICLES
    return (words[0].lower(), words[1:]) if has_article else ("", words)

"""The short form of `train` and `doctor`: photos, a subject and a model stand for the settings that they are.

    torchbooth train photos/ --subject "sks dog" --model ID

is the recipe of the defaults with `auto` numbers and, with torchbooth, the memory techniques with which it fits on the
GPU that is there; or what --config has. A setting given as NAME=VALUE counts more than one that is derived here.
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
EMBEDDED_CONFIG = "demo"  # which has the numbers that suit the embedded base
_ARTICLES = ("a", "an", "the")
_AUTO = (("train.steps", "auto"), ("train.learning_rate", "auto"), ("prior.count", "auto"))
_FITTING = ("memory.fit", "auto")  # torchbooth alone has it
_TO_LOOK_AT = ("samples.before_after", "true")


def short_form(package: str, options: argparse.Namespace) -> tuple[str, list[tuple[str, str]]]:
    """Return the config to begin with, "" for the defaults, and what the options stand for as (name, text).

    Say what is derived. UserError for options that do not say enough.
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
        found.append(("samples.prompts", ""))  # which are those of the example's subject
    elif not base:
        found += [*_AUTO, *[_FITTING] * (package == "torchbooth"), _TO_LOOK_AT]
    for name, text in found:
        if name not in given and text not in ("", "auto", options.model, options.photos):
            log.info("%s=%s", name, text)
    if base and not options.config:
        log.info("--config %s, whose numbers suit model.source=%s", base, EMBEDDED)
    return base, found


def workdir(options: argparse.Namespace) -> str:
    """Return the run folder that is named after the subject, or else after the photos; "" if there are no photos."""
    if not options.photos:
        return ""
    named = " ".join(_words(options.subject)[1]) if options.subject else Path(options.photos.rstrip("/\\")).name
    return str(Path("runs") / (re.sub(r"\W+", "-", named).strip("-").lower() or "subject"))


def _check_complete(options: argparse.Namespace, given: set[str]) -> None:
    """UserError if there is neither a config nor photos, a model, and what the photos show."""
    example = "photos/ --subject 'sks dog' --model ID"
    if not options.photos:
        raise UserError(f"there are neither photos nor a config; give {example}, or --config FILE")
    if not options.model and "model.source" not in given:
        raise UserError(f"--model is missing; give a pipeline's folder or hub id, or {EMBEDDED}, as in {example}")
    if not options.subject and not given & {"instance.prompt", "instance.captions"}:
        raise UserError(f"--subject is missing; give a rare word and what the subject is, as in {example}")


def _photos(given: str) -> str:
    """Return the folder of the photos, or the dataset; that of an example which comes with booth."""
    return str(subject_path(given.removeprefix(EXAMPLE))) if given.startswith(EXAMPLE) else given


def _prompts(subject: str) -> list[tuple[str, str]]:
    """Return the prompts of the subject and of its class, which is what follows the first word."""
    article, words = _words(subject)
    kind = " ".join(words[1:])
    if not kind:
        raise UserError(
            f"--subject {subject!r} must be a rare word and what the subject is, such as 'sks dog'; the pictures of"
            " that class show the model what it is not to change"
        )
    if article in ("a", "an"):
        article = "an" if kind[0].lower() in "aeiou" else "a"
    of_class = f"{article} {kind}".strip()
    return [("instance.prompt", f"a photo of {' '.join(subject.split())}"), ("prior.prompt", f"a photo of {of_class}")]


def _words(subject: str) -> tuple[str, list[str]]:
    """Return the article that a subject may begin with, in lower case, and its other words."""
    words = subject.split()
    has_article = bool(words) and words[0].lower() in _ARTICLES
    return (words[0].lower(), words[1:]) if has_article else ("", words)

"""Several concepts in one run. Each may have its own fields of `instance` and `prior`; other fields are the run's.

    concepts = (
        {"instance.images": "photos/dog", "instance.prompt": "a photo of sks dog", "prior.prompt": "a photo of dog"},
        {"instance.images": "photos/cat", "instance.prompt": "a photo of zwx cat", "prior.prompt": "a photo of cat"},
    )

The photos and class images of all concepts are mixed in one order; `weight` scales the loss of a concept's rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from booth.common.errors import UserError, naming
from booth.config.values import WEIGHT, flat, set_field

CONCEPT_SECTIONS = ("instance", "prior")  # a concept may have fields of these sections


@dataclass(frozen=True)
class Concept:
    """One concept of a run.

    `config` is the run's config with the concept's own fields; `name` is for messages and empty if the run has only one
    concept; `weight` scales the loss of the concept's rows.
    """

    config: Any
    name: str = ""
    weight: float = 1.0

    @property
    def has_prior(self) -> bool:
        """Whether the concept also trains on class images."""
        return bool(self.config.prior.weight > 0)


def concepts_of(config: Any) -> tuple[Concept, ...]:
    """Return the concepts of a run: those in its list, or else the one of `instance` and `prior`.

    Raise UserError if a concept has a field that no concept may have.
    """
    if not config.concepts:
        return (Concept(config),)
    return tuple(_concept(config, place, entry) for place, entry in enumerate(config.concepts))


def class_folder(concepts: Sequence[Concept], place: int, made: Path) -> Path:
    """Return the folder with the class images of the concept at `place`.

    `made` is the folder for class images that the run makes. Concepts with equal `prior` settings share one folder.
    """
    settings = concepts[place].config.prior
    if settings.images:
        return Path(settings.images)
    same = [other for other, concept in enumerate(concepts) if concept.config.prior == settings]
    return made / str(same[0]) if len(concepts) > 1 else made


def has_prior(config: Any) -> bool:
    """Return whether any concept trains on class images, so that batches have class rows."""
    return any(concept.has_prior for concept in concepts_of(config))


def _concept(config: Any, place: int, entry: Mapping[str, Any]) -> Concept:
    name = f"concepts[{place}]"
    own = config.copy_and_resolve_references()
    fields = flat(entry)
    weight = fields.pop(WEIGHT, 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise UserError(f"{name}.weight={weight!r} must be a number greater than 0")
    for field, value in fields.items():
        if field.partition(".")[0] not in CONCEPT_SECTIONS:
            raise UserError(
                f"{name}.{field}: a concept has fields of instance and prior, such as instance.images, and"
                f" {WEIGHT}; put others beside the list"
            )
        with naming(name):
            set_field(own, field, value)
    return Concept(own, name, float(weight))

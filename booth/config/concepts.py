"""Several concepts in one run: each has fields of `instance` and `prior` of its own, and the run's for the rest.

    concepts = (
        {"instance.images": "photos/dog", "instance.prompt": "a photo of sks dog", "prior.prompt": "a photo of dog"},
        {"instance.images": "photos/cat", "instance.prompt": "a photo of zwx cat", "prior.prompt": "a photo of cat"},
    )

Their photos and class images are shown in one order; `weight` says how much a concept's rows count in the loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from booth.common.errors import UserError, naming
from booth.config.values import WEIGHT, flat, set_field

SECTIONS = ("instance", "prior")  # what a concept may have fields of


@dataclass(frozen=True)
class Concept:
    """`config`: the run's with this concept's fields; `name`: for messages, empty where there is only one."""

    config: Any
    name: str = ""
    weight: float = 1.0

    @property
    def has_prior(self) -> bool:
        """Whether class images are trained on beside its photos."""
        return bool(self.config.prior.weight > 0)


def concepts_of(config: Any) -> tuple[Concept, ...]:
    """Those of a run: the one of `instance` and `prior`, or those listed. UserError for fields they cannot have."""
    if not config.concepts:
        return (Concept(config),)
    return tuple(_concept(config, place, entry) for place, entry in enumerate(config.concepts))


def class_folder(concepts: Sequence[Concept], place: int, made: Path) -> Path:
    """Where the class images of a concept are, `made` being where a run makes its own; concepts with the same `prior`
    share them."""
    settings = concepts[place].config.prior
    if settings.images:
        return Path(settings.images)
    same = [other for other, concept in enumerate(concepts) if concept.config.prior == settings]
    return made / str(same[0]) if len(concepts) > 1 else made


def has_prior(config: Any) -> bool:
    """Whether batches have class rows."""
    return any(concept.has_prior for concept in concepts_of(config))


def _concept(config: Any, place: int, entry: Mapping[str, Any]) -> Concept:
    name = f"concepts[{place}]"
    own = config.copy_and_resolve_references()
    fields = flat(entry)
    weight = fields.pop(WEIGHT, 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise UserError(f"{name}.weight={weight!r} must be a number greater than 0")
    for field, value in fields.items():
        if field.partition(".")[0] not in SECTIONS:
            raise UserError(
                f"{name}.{field}: a concept has fields of {' and '.join(SECTIONS)}, such as instance.images, and"
                f" {WEIGHT}; put others beside the list"
            )
        with naming(name):
            set_field(own, field, value)
    return Concept(own, name, float(weight))

"""Compare the config that a run recorded with the config that it is given now."""

from collections.abc import Mapping
from typing import Any

from booth.config.fields import AUTO
from booth.config.texts import of_text
from booth.config.values import CONCEPTS, default_config, flatten, without_effect

_ONCE_ZERO = ("train.text_encoder_learning_rate", "adapter.alpha")


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return {name: (before, after)} of the fields, also those of concepts, that differ between two flat configs."""
    before, after = _with_concepts(before), _with_concepts(after)
    names = [*after, *(name for name in before if name not in after)]
    return {n: (before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n)}


def _with_concepts(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a flat config in which names such as `concepts[0].instance.images` replace the list of concepts."""
    entries = {f"{CONCEPTS}[{place}].{name}": value
               for place, entry in enumerate(fields.get(CONCEPTS, ())) for name, value in entry.items()}  # fmt: skip
    return {name: value for name, value in fields.items() if name != CONCEPTS} | entries


def of_record(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flat config that a run recorded, in the form in which this version would write it.

    In older versions 0 stood for "auto", and fields without effect could have any value.
    """
    fields = dict(fields)
    fields |= {name: AUTO for name in _ONCE_ZERO if fields.get(name) == 0}
    if CONCEPTS in fields:  # in older versions a weight could be text
        fields[CONCEPTS] = of_text(CONCEPTS, fields[CONCEPTS])
    every = {**flatten(default_config()), **fields}
    every = {name: tuple(value) if isinstance(value, list) else value for name, value in every.items()}
    idle = [field for field in without_effect(every) if all(need.refused for need in field.needs)]
    return {**fields, **{field.name: field.default for field in idle if field.name in fields}}

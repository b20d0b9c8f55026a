"""What config files of YAML and JSON hold, as plain data.

In YAML all values are text but null: what a text means, the field knows that it is for. (YAML 1.1 takes 010 for 8, 1:30
for 90, 1e-4 for text, and `no` for false, be it in a prompt.)
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

_NULL = "tag:yaml.org,2002:null"


def read(path: Path) -> Any:
    """The content of a file, JSON by its name or else YAML; whatever json and PyYAML raise, if it is neither."""
    text = path.read_text(encoding="utf-8-sig")  # with or without the mark that Windows editors put first
    return json.loads(text, object_pairs_hook=_once) if path.suffix == ".json" else from_yaml(text)


def from_yaml(text: str) -> Any:
    """The same of a YAML text."""
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    """Plain data: no tags that make objects, no aliases (a few lines of them stand for more than fits into memory), and
    no name twice in one place, of which only the last would count."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, form) for tag, form in forms if tag == _NULL]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise ComposerError(None, None, f"*{event.anchor}: aliases are not read", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise ConstructorError(None, None, _twice(key.value for key, _ in node.value), node.start_mark)
        return mapping


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The same for JSON."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError(_twice(name for name, _ in pairs))
    return dict(pairs)


def _twice(names: Iterable[Any]) -> str:
    name, _ = Counter(map(str, names)).most_common(1)[0]
    return f"{name!r} is there twice"

"""Read config files of YAML and JSON as plain data.

All values of YAML except null are read as text; the field that a text is for decides what the text means. (YAML 1.1
would read 010 as 8, 1:30 as 90, 1e-4 as text, and `no` as false, even in a prompt.)
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
    """Return the content of a file: of JSON if its suffix is .json, else of YAML. Raise what json or PyYAML raise."""
    text = path.read_text(encoding="utf-8-sig")  # with or without the byte order mark of Windows editors
    return json.loads(text, object_pairs_hook=_once) if path.suffix == ".json" else from_yaml(text)


def from_yaml(text: str) -> Any:
    """Return the content of a YAML text. Raise what PyYAML raises if it cannot be read."""
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    """A loader for plain data.

    It refuses tags that make objects, aliases (a few lines of aliases can stand for more than fits into memory), and a
    name that occurs twice in one mapping (only the last one would count).
    """

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
    """Return a dict of the pairs. Raise ValueError if a name occurs twice."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError(_twice(name for name, _ in pairs))
    return dict(pairs)


def _twice(names: Iterable[Any]) -> str:
    name, _ = Counter(map(str, names)).most_common(1)[0]
    return f"{name!r} is there twice"

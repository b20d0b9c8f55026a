"""HTML made of elements: `xml.etree` escapes their text and closes every tag."""

import xml.etree.ElementTree as ET

from booth.common.file_names import printable

_LONGEST = 600
Content = ET.Element | str | None


def element(tag: str, *content: Content, **attributes: object) -> ET.Element:
    """Return <tag attributes>content</tag>. Text is escaped, and a content of None is left out.

    `class_="x"` is class="x" and `aria_label` is aria-label. True is an attribute without a value; None and False are
    left out.
    """
    node = ET.Element(tag)
    for name, value in attributes.items():
        if value is not None and value is not False:
            node.set(name.rstrip("_").replace("_", "-"), "" if value is True else printable(str(value)))
    for part in content:
        if isinstance(part, str):
            _add_text(node, printable(part))
        elif part is not None:
            node.append(part)
    return node


def shortened(text: str) -> str:
    """Return the beginning of a long text."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def html(node: ET.Element) -> str:
    return ET.tostring(node, encoding="unicode", method="html")


def _add_text(node: ET.Element, text: str) -> None:
    if len(node):
        node[-1].tail = (node[-1].tail or "") + text
    else:
        node.text = (node.text or "") + text

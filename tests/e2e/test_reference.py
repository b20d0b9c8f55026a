"""The pages of docs/ and the code say the same: generated pages, paths of files, the table of both backends' roles."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
REFERENCE = ROOT / "docs" / "reference"
_PATH = re.compile(r"(?<![\w/.-])((?:booth|jaxbooth|torchbooth|configs|scripts|tests)/[\w/-]+\.py|docs/[\w/-]+\.\w+)\b")
_LINK = re.compile(r"\]\(((?!https?://)[^)#\s]*)(#[^)\s]*)?\)")


def prose(text):
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def missing_paths(text):
    return sorted(path for path in set(_PATH.findall(text)) if not (ROOT / path).exists())


def missing_links(page, text):
    targets = {target for target, _ in _LINK.findall(prose(text)) if target}
    return sorted(target for target in targets if not (page.parent / target).exists())


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_path_and_link_exists(page):
    text = page.read_text(encoding="utf-8")
    assert missing_paths(text) == []
    assert missing_links(page, text) == []


def test_a_path_or_link_that_is_gone_is_found():
    text = "See `booth/train/nothing.py`, docs/GUIDE.md, [it](guide/lora.md#files) and [that](guide/gone.md)."
    assert missing_paths(text) == ["booth/train/nothing.py", "docs/GUIDE.md"]
    assert missing_links(ROOT / "docs" / "index.md", text) == ["guide/gone.md"]
    assert len(_PATH.findall((ROOT / "docs" / "developers" / "architecture.md").read_text(encoding="utf-8"))) > 50


@pytest.mark.parametrize("name", ["settings.md", "commands.md"])
def test_generated_pages_are_up_to_date(name):
    import make_reference

    written = (REFERENCE / name).read_text(encoding="utf-8")
    assert written == make_reference.pages()[name], "run scripts/make_reference.py"


def test_the_reference_names_every_setting_and_command():
    import make_reference

    from booth.config.fields import FIELDS

    settings = (REFERENCE / "settings.md").read_text(encoding="utf-8")
    assert [field.name for field in FIELDS if f"| `{field.name}` |" not in settings] == []
    commands = (REFERENCE / "commands.md").read_text(encoding="utf-8")
    for backend in make_reference.BACKENDS:
        parsers = make_reference.command_parsers(backend)
        assert len(parsers) > 7 and all(f"\n## {name}\n" in commands for name in parsers)


def roles():
    """(role, file of jaxbooth, file of torchbooth) of the table in the architecture page."""
    page = (ROOT / "docs" / "developers" / "architecture.md").read_text(encoding="utf-8")
    part = page.partition("## Same role, same name")[2].partition("\n## ")[0]
    return re.findall(r"^\| (.*?) \| `(jaxbooth/.*?)` \| `(torchbooth/.*?)` \|$", part, re.MULTILINE)


def test_both_backends_have_the_files_of_their_roles():
    table = roles()
    assert len(table) > 12
    assert [path for _, *paths in table for path in paths if not (ROOT / path).is_file()] == []


def test_the_table_of_roles_and_files_is_complete():
    page = (ROOT / "docs" / "developers" / "architecture.md").read_text(encoding="utf-8")
    files = [path for backend in ("jaxbooth", "torchbooth") for path in (ROOT / backend).rglob("*.py")]
    names = [path.relative_to(ROOT).as_posix() for path in files if path.name != "__init__.py"]
    assert [name for name in names if f"`{name}`" not in page] == [], "in neither table of the architecture page"
    alike = {Path(ours).name for _, ours, theirs in roles() if Path(ours).name == Path(theirs).name}
    both = {path.name for path in (ROOT / "jaxbooth").glob("*.py")} & {
        path.name for path in (ROOT / "torchbooth").glob("*.py")
    }
    assert both - {"__init__.py"} == alike, "files of the same name have the same role"


def test_the_pages_that_are_read_first_are_short():
    for name, lines in (("README.md", 200), ("docs/developers/architecture.md", 150)):
        assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= lines, name


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    named = re.findall(r": ([\w/-]+\.md)$", navigation, re.MULTILINE)
    assert sorted(named) == sorted(path.relative_to(ROOT / "docs").as_posix() for path in PAGES[1:])


@pytest.mark.full
def test_the_site_loads_nothing_from_other_servers(tmp_path):
    config, build = (pytest.importorskip(f"mkdocs.{name}") for name in ("config", "commands.build"))
    pytest.importorskip("material")
    build.build(config.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True))
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES) - 2
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert re.findall(r"<(?:script|img|iframe)[^>]*src=\"?(?:https?:)?//[^>]*>", text) == [], page
        assert re.findall(r"<link[^>]*rel=\"?(?:stylesheet|preconnect|icon)[^>]*https?://[^>]*>", text) == [], page

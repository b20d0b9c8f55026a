"""The rooms of the core: imports run one way, in no circle, and never into a backend."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("common", "config", "models", "diffusion", "data", "train", "evaluate", "report", "commands")
BACKENDS = ("torchbooth", "jaxbooth")
# What of the core a backend may import in all its modules; its entry points and plans go further.
FOR_BACKENDS = ("common", "config", "models", "diffusion", "data")
ENTRY_POINTS = ("__main__.py", "train.py")


def sources(root):
    """Return {name of the module: its source} of the core and both backends."""
    files = [file for package in ("booth", *BACKENDS) for file in (root / package).rglob("*.py")]
    names = (file.relative_to(root).with_suffix("").parts for file in files)
    return {
        ".".join(name[:-1] if name[-1] == "__init__" else name): file.read_text(encoding="utf-8")
        for name, file in zip(names, files, strict=True)
    }


def imported(source, modules):
    """Return the project's modules that a source imports anywhere: under TYPE_CHECKING and inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports say where a module is"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules else node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return {name for name in found if isinstance(name, str) and name.partition(".")[0] in ("booth", *BACKENDS)}


def room(module):
    parts = module.split(".")
    return parts[1] if parts[0] == "booth" and len(parts) > 1 else ""


def faults(modules):
    """Return one line for each import that runs upwards or into a backend, and for a circle."""
    lines = []
    arrows = {name: imported(source, modules) for name, source in modules.items()}
    for name, targets in arrows.items():
        for target in sorted(targets):
            if room(name) and target.partition(".")[0] in BACKENDS:
                lines.append(f"{name} imports {target}: a backend")
            elif room(name) and room(target) and ROOMS.index(room(target)) > ROOMS.index(room(name)):
                lines.append(f"{name} imports {target}: upwards")
    try:
        TopologicalSorter({name: targets - {name} for name, targets in arrows.items()}).prepare()
    except CycleError as error:
        lines.append(f"a circle: {' -> '.join(error.args[1])}")
    return lines


@pytest.fixture(scope="module")
def modules():
    return sources(ROOT)


def test_imports_run_one_way(modules):
    assert {room(name) for name in modules} - {""} == set(ROOMS)
    assert faults(modules) == []


@pytest.mark.parametrize(
    ("module", "line", "said"),
    [
        (
            "booth.config.fields",
            "from booth.train import loop",
            "booth.config.fields imports booth.train.loop: upwards",
        ),
        ("booth.evaluate.judges", "def f():\n    import torchbooth.vision", "imports torchbooth.vision: a backend"),
        ("booth.common.errors", "if TYPE_CHECKING:\n    from booth.common.files import publish", "a circle: "),
        (
            "booth.models.hub",
            "def f():\n    importlib.import_module('booth.data.images')",
            "booth.data.images: upwards",
        ),
    ],
)
def test_a_planted_import_is_found(modules, module, line, said):
    planted = {**modules, module: f"{modules[module]}\n{line}\n"}
    assert any(said in fault for fault in faults(planted))


def test_backends_import_what_is_for_them(modules):
    """Their entry points start commands, and a plan looks at a run as `train` prepares it."""
    further = {
        f"{name} imports {target}"
        for name, source in modules.items()
        if name.partition(".")[0] in BACKENDS and f"{name.rpartition('.')[2]}.py" not in ENTRY_POINTS
        for target in imported(source, modules)
        if room(target) and room(target) not in FOR_BACKENDS
    }
    assert further == set()


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_says_what_it_is_for(name):
    """In three sentences: what lives here, what does not, and what it may import."""
    text = ast.get_docstring(ast.parse((ROOT / "booth" / name / "__init__.py").read_text(encoding="utf-8")))
    *others, third = text.replace("\n\n", "\n").split(".\n")
    assert len(others) == 2
    assert third.startswith("This room ")
    named = [other for other in ROOMS if f"`{other}`" in third]
    if third.startswith("This room may import `"):
        assert named == list(ROOMS[: ROOMS.index(name)])


def test_no_pickles_between_processes_and_no_private_names_of_jax():
    """Only the command that takes tensors out of pickles reads any; private names may change with any version."""
    root = Path(__file__).parents[2]
    files = [file for package in ("booth", "jaxbooth", "torchbooth") for file in (root / package).rglob("*.py")]
    texts = {file.relative_to(root).as_posix(): file.read_text(encoding="utf-8") for file in files}
    assert len(texts) > 100
    pickling = [
        name for name, text in texts.items() if re.search(r"\b(import|from) pickle|pickle\.(loads|dumps)", text)
    ]
    assert set(pickling) <= {"torchbooth/pickles.py"}
    assert [name for name, text in texts.items() if re.search(r"\bjax\._|\bjaxlib\b|\bfrom jax\.\w*\._", text)] == []

"""docs/quickstart.ipynb runs from top to bottom, and is kept without what it printed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from waiting import PATIENCE_S

NOTEBOOK = Path(__file__).parents[2] / "docs" / "quickstart.ipynb"

# What a notebook does: the cells one after another in one namespace, the last expression of each shown.
RUN = """
import ast, json, sys

shown, names = [], {"__name__": "__main__"}
for number, cell in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))["cells"]):
    if cell["cell_type"] == "code":
        tree = ast.parse("".join(cell["source"]), f"cell {number}")
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"cell {number}", "exec"), names)
        value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names) if last else None
        shown += [] if value is None else [hasattr(value, "_repr_png_")]
print("shown:", json.dumps(shown))
"""


def test_kept_without_output():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5) and set(notebook) == {
        "cells", "metadata", "nbformat", "nbformat_minor",
    }  # fmt: skip
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) > 10
    for cell in notebook["cells"]:
        assert cell["metadata"] == {} and all(isinstance(line, str) for line in cell["source"])
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
        else:
            assert cell["cell_type"] == "markdown" and not {"outputs", "execution_count"} & set(cell)


@pytest.mark.full
def test_runs_from_top_to_bottom(tmp_path, environment):
    done = subprocess.run(
        [sys.executable, "-c", RUN, NOTEBOOK],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, encoding="utf-8", timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.partition("shown: ")[2]) == [True, False, True, True], "photos, files, before, after"
    assert "step  141" in done.stdout, "went on from step 100"
    work = tmp_path / "quickstart"
    assert (work / "run" / "pipeline" / "model_index.json").is_file()
    before, after = (Image.open(work / name / "grid.png") for name in ("before", "after"))
    assert before.size == after.size and before.tobytes() != after.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["quickstart"]

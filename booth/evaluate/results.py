"""RUN/evaluation/: the measures of a run's checkpoints, which is the best, and a picture of all at the same seeds.

scores.json     recipe, measures of photos, base and checkpoints, the best step
scores.png      photos, then a row of pictures of the base and of each checkpoint
pictures/       all pictures that were measured, in a folder for each model and sampling recipe
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from booth.common.errors import UserError
from booth.common.files import write_text
from booth.evaluate import scores
from booth.evaluate.scores import SHARES, Measures

FOLDER, SCORES, SHEET, PICTURES = "evaluation", "scores.json", "scores.png", "pictures"


@dataclass(frozen=True)
class Scored:
    """A checkpoint and its measures. `identity` distinguishes it from another checkpoint of the same step; `shares` are
    those of `scores.shares`."""

    step: int
    identity: str
    measures: Measures
    shares: Measures


@dataclass
class Evaluation:
    """The content of scores.json; `recipe` is everything that the numbers depend on besides the checkpoint."""

    recipe: dict[str, Any]
    photos: Measures = field(default_factory=dict)
    base: Measures = field(default_factory=dict)
    checkpoints: list[Scored] = field(default_factory=list)

    @property
    def best(self) -> int | None:
        return scores.best((scored.step, scored.shares) for scored in self.checkpoints)

    def find(self, step: int, identity: str) -> Scored | None:
        return next((scored for scored in self.checkpoints if (scored.step, scored.identity) == (step, identity)), None)

    def write(self, run_dir: Path) -> None:
        content = {**asdict(self), "best": self.best}
        write_text(run_dir / FOLDER / SCORES, json.dumps(content, indent=1) + "\n")

    def table(self) -> str:
        """Return a Markdown table with a line for the photos, the base and each checkpoint; the best is marked."""
        columns = [*self.base, *SHARES, "score"]
        lines = {"photos": self.photos, "base": self.base}
        for scored in self.checkpoints:
            name = f"**{scored.step} (best)**" if scored.step == self.best else str(scored.step)
            lines[name] = scored.measures | scored.shares
        return markdown_table("step", columns, lines)


def markdown_table(first: str, columns: Sequence[str], lines: Mapping[str, Measures]) -> str:
    """Return a Markdown table. A cell is empty if its line lacks the measure."""
    rows = [[first, *columns], ["---"] * (len(columns) + 1)]
    rows += [[name, *(f"{line[key]:.3f}" if key in line else "" for key in columns)] for name, line in lines.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def read(run_dir: Path) -> Evaluation | None:
    """Return the earlier evaluation of a run; None if there is none, or if it cannot be read."""
    try:
        content = json.loads((run_dir / FOLDER / SCORES).read_text(encoding="utf-8"))
        checkpoints = [Scored(**scored) for scored in content["checkpoints"]]
        found = Evaluation(dict(content["recipe"]), dict(content["photos"]), dict(content["base"]), checkpoints)
        _ = found.best
    except (OSError, RecursionError, AttributeError, KeyError, TypeError, ValueError):
        return None
    return found


def best_checkpoint(run_dir: str) -> tuple[int, str]:
    """Return (step, identity) of the best checkpoint. Raise UserError if nothing was measured, or none has a score
    above 0."""
    found = read(Path(run_dir))
    if found is None:
        raise UserError(
            f"--best: {run_dir} has no evaluation that can be read; make one with: evaluate --run {run_dir}"
        )
    if found.best is None:
        raise UserError(f"--best: no checkpoint of {run_dir} has a score above 0 (its {FOLDER}/{SCORES}); give --step")
    return found.best, next(scored.identity for scored in found.checkpoints if scored.step == found.best)

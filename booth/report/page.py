"""The page of `booth.report.write` as HTML that needs no other file: pictures are embedded, and curves are SVG.

Without JavaScript all previews are shown one below the other; with it a slider shows one at a time.
"""

import base64
import hashlib
import html as standard
import json
import statistics
import string
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from booth.common.disk_space import readable
from booth.common.file_names import printable
from booth.config.fields import FIELDS
from booth.report.curves import Curve, chart, smoothed
from booth.report.data import Report
from booth.report.markup import element, html, shortened
from booth.report.pictures import LARGE, PREVIEW, PREVIEWS, THUMBNAILS, captioned, linked, spread

_MOST_FIELDS = 300

_SCRIPT = """
const slider = document.getElementById("step");
const shots = [...document.querySelectorAll("#previews figure")];
const show = () => {
  shots.forEach((shot, place) => { shot.hidden = place !== Number(slider.value); });
  const said = shots[slider.value].dataset.said;
  document.getElementById("shown").textContent = said;
  slider.setAttribute("aria-valuetext", said);
};
if (slider) {
  slider.closest(".control").hidden = false;
  slider.addEventListener("input", show);
  show();
}
"""


def page(report: Report) -> str:
    """Return the whole document."""
    template = (Path(__file__).parent / "report_template.html").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    sections = (_head, _before_after, _previews, _curves, _evaluation, _albums, _settings, _model, _files, _commands)
    body = element("main", *(part for section in sections for part in section(report)))
    return string.Template(template).substitute(
        title=standard.escape(f"{printable(_name(report))}: report"),
        script_hash=f"sha256-{digest}",
        body=html(body),
        script=_SCRIPT,
    )


def _name(report: Report) -> str:
    return report.path.absolute().name


def _head(report: Report) -> Iterator[ET.Element]:
    yield element("h1", _name(report))
    steps, speeds = report.config.train.steps, report.values("samples_per_s")[1]
    state = "finished" if report.step >= steps else "not finished"
    by = f"Trained with {report.package}, {state}; written {time.strftime('%Y-%m-%d %H:%M')}."
    yield element("p", by, class_="quiet")
    losses = report.values("loss")[1]
    skipped = int(sum(report.values("skipped")[1]))
    seconds = sum(report.rows / speed for speed in speeds if speed > 0)
    facts = {
        "Step": f"{report.step} of {steps}",
        "Loss, smoothed": f"{smoothed(losses)[-1]:.4g}" if len(losses) else None,
        "Speed, median": f"{statistics.median(speeds):.3g} samples/s" if len(speeds) else None,
        "Time in training": _duration(seconds) if len(speeds) else None,
        "Rows per update": str(report.rows),
        "Skipped updates": str(skipped) if skipped else None,
        "Checkpoints": ", ".join(map(str, report.checkpoints[-3:])) or None,
    }
    tiles = [element("div", element("dt", name), element("dd", value)) for name, value in facts.items() if value]
    yield element("dl", *tiles, class_="tiles")


def _before_after(report: Report) -> Iterator[ET.Element]:
    if report.before_after:
        yield element("h2", "Before and after")
        said = "The instance pictures, then for each prompt pictures of the base and of the tuned model, at equal seeds"
        yield linked(report, report.before_after, LARGE, said)


def _previews(report: Report) -> Iterator[ET.Element]:
    if not report.previews:
        return
    shown, last = spread(list(report.previews.items()), PREVIEWS), report.config.train.steps
    few = f", {len(shown)} of {len(report.previews)} shown" if len(shown) < len(report.previews) else ""
    figures = [
        element(
            "figure", linked(report, path, PREVIEW, f"Preview of the model after {step} updates"),
            element("figcaption", f"Step {step}"), data_said=f"step {step} of {last}",
        )
        for step, path in shown
    ]  # fmt: skip
    slider = element(
        "input", type="range", id="step", min=0, max=len(shown) - 1, value=len(shown) - 1, step=1, autocomplete="off"
    )
    label = element("label", "Shown: ", element("output", id="shown", for_="step"), for_="step")
    yield element(
        "section", element("h2", "Previews"), element("p", f"The same prompts and seeds at each step{few}."),
        element("div", label, slider, class_="control", hidden=True), *figures, id="previews",
    )  # fmt: skip


def _curves(report: Report) -> Iterator[ET.Element]:
    charts = []
    steps, losses = report.values("loss")
    if len(steps):
        parts = [Curve("total", steps, smoothed(losses))]
        for name, kind in (("instance_loss", "instance"), ("prior_loss", "prior")):
            of_part, values = report.values(name)
            if len(values) and any(report.values("prior_loss")[1]):
                parts.append(Curve(kind, of_part, smoothed(values), kind))
        title = "Loss, smoothed (pale line = total of each step)"
        charts.append(chart(title, parts, Curve("", steps, losses), from_zero=False))
    names = sorted({name for line in report.metrics[-1:] for name in line if name.endswith("learning_rate")})
    kinds = ("other", "instance", "prior")  # colours and dashes
    rates = [
        Curve(name.removesuffix("_learning_rate").replace("learning_rate", "UNet"), *report.values(name), kind)
        for name, kind in zip(names, kinds, strict=False)
    ]
    if rates := [curve for curve in rates if len(curve.steps)]:
        charts.append(chart("Learning rate", rates))
    steps, speeds = report.values("samples_per_s")
    if len(steps):
        charts.append(chart("Speed, samples/s", [Curve("rows of updates", steps, speeds, "other")]))
    if charts:
        yield element("h2", "Curves")
        yield element("div", *charts, class_="charts")


def _evaluation(report: Report) -> Iterator[ET.Element]:
    found = report.evaluation
    if not found or not found.checkpoints:
        return
    curves = []
    for name, kind in {"score": "total", "subject": "instance", "prompt": "other", "prior": "prior"}.items():
        points = [(scored.step, scored.shares[name]) for scored in found.checkpoints if name in scored.shares]
        if points:
            steps, values = map(np.array, zip(*points, strict=True))
            curves.append(Curve(name, steps, values, kind))
    yield element("h2", "Which checkpoint?")
    best = f"The best is step {found.best}." if found.best is not None else "No checkpoint has a score above 0."
    yield element("p", best)
    if curves:
        yield element("div", chart("Measured by evaluate, from 0 (worst) to 1 (best)", curves), class_="charts")


def _albums(report: Report) -> Iterator[ET.Element]:
    albums = report.albums[:THUMBNAILS]
    if not albums:
        return
    yield element("h2", "Training images")
    for album in albums:
        shown = spread(list(album.captions), max(1, THUMBNAILS // len(albums)))
        yield element("h3", f"{album.title}: {len(album.captions)}")
        if album.prompt:
            yield element("p", shortened(album.prompt))
        figures = [captioned(album, name) for name in shown]
        if found := [figure for figure in figures if figure is not None]:
            yield element("div", *found, class_="album")
        if len(found) < len(shown):
            gone = "They" if not found else "The others"
            yield element("p", f"{gone} cannot be read in {album.folder}.", class_="quiet")
        elif len(shown) < len(album.captions):
            yield element("p", f"{len(shown)} of them are shown.", class_="quiet")
    if more := len(report.albums) - len(albums):
        yield element("p", f"{more} more folders are not shown.", class_="quiet")


def _settings(report: Report) -> Iterator[ET.Element]:
    yield element("h2", "Settings")
    rows = [(name, value, f"default: {_text(default)}") for name, (default, value) in report.changed.items()]
    yield element("p", f"Settings that differ from the defaults: {len(rows)}")
    yield _table(("setting", "value"), rows)
    every = [(field.name, report.fields[field.name], field.meaning) for field in FIELDS]
    yield element("details", element("summary", f"All {len(every)} settings"), _table(("setting", "value"), every))


def _model(report: Report) -> Iterator[ET.Element]:
    yield element("h2", "Model and versions")
    hashes = {f"{name}, sha256": value for name, value in report.manifest.get("model weights", {}).items()}
    origins = {
        f"{kind}, {name}": value for kind, origin in report.origins.items() for name, value in origin.items() if value
    }
    facts = {"model.source": report.config.model.source, **origins, **hashes, **report.manifest.get("versions", {})}
    yield _table(("name", "value"), [(name, value, "") for name, value in facts.items()])


def _files(report: Report) -> Iterator[ET.Element]:
    yield element("h2", "Files")
    items = [
        element("li", element("a", name, href=quote(name)), f" {meaning}, {readable(size)}")
        for name, (meaning, size) in report.files.items()
    ]
    yield element("ul", *items)
    if elsewhere := report.config.checkpoint.dir:
        yield element("p", f"Checkpoints are in {elsewhere}.")


def _commands(report: Report) -> Iterator[ET.Element]:
    yield element("h2", "Commands")
    for purpose, command in report.commands.items():
        yield element("h3", purpose)
        yield element("pre", element("code", command))


def _table(heads: Sequence[str], rows: Sequence[tuple[str, Any, str]]) -> ET.Element:
    """Return a table of (name, value, note) with the note below the value."""
    head = element("thead", element("tr", *(element("th", text, scope="col") for text in heads)))
    lines = [
        element(
            "tr", element("th", element("code", shortened(name)), scope="row"),
            element("td", _text(value), element("small", note) if note else None),
        )
        for name, value, note in rows[:_MOST_FIELDS]
    ]  # fmt: skip
    return element("table", head, element("tbody", *lines))


def _duration(seconds: float) -> str:
    minutes = int(seconds / 60)
    if minutes < 1:
        return f"{seconds:.3g} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds % 60:.0f} s"


def _text(value: Any) -> str:
    return shortened(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)) or "(empty)"

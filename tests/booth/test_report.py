"""RUN/report.html: one file that needs no other, is there while a run trains, and never ends it."""

import base64
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fake_backend import FakeBackend, watched
from PIL import Image

from booth.commands.cli import main
from booth.common.errors import UserError
from booth.config.loading import load_config
from booth.config.values import resolved
from booth.evaluate.results import Evaluation, Scored
from booth.report import write
from booth.report.curves import _POINTS, Curve, chart, smoothed
from booth.report.data import gather
from booth.report.pictures import LARGE, PREVIEW, PREVIEWS, THUMBNAIL, THUMBNAILS
from booth.train import loop
from booth.train.run_folder import locked

VOID = {"meta", "img", "input", "br"}
EVIL = "<script>alert(1)</script> \"quoted\" & 'more' </title> $body \x1b[0m"


class Page(HTMLParser):
    """Elements as (tag, attributes); AssertionError for a tag that is not closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def of(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]

    def text(self, *tags):
        return " ".join(data for tag, data in self.texts if not tags or tag in tags)


def page_of(run):
    return Page((run / "report.html").read_text(encoding="utf-8"))


def pictures(page, alt):
    return [image for image in page.of("img") if image["alt"].startswith(alt)]


@pytest.fixture
def config(tiny_config):
    tiny_config.train.learning_rate, tiny_config.samples.inference_steps = 0.05, 2
    return tiny_config


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copied")


def test_all_is_on_the_page(finished, photos):
    page = page_of(finished)
    assert len(pictures(page, "Instance images: robot")) == len(list(photos.glob("*.png"))) == 5
    assert len(pictures(page, "Class images: class-")) == 2
    assert len(pictures(page, "Preview of the model after")) == 2
    assert len(pictures(page, "The instance pictures, then")) == 1
    charts = [svg["aria-label"] for svg in page.of("svg")]
    assert [label.partition(":")[0] for label in charts] == [
        "Loss, smoothed (pale line = total of each step)",
        "Learning rate",
        "Speed, samples/s",
    ]
    assert all(part in charts[0] for part in ("total from", "instance from", "prior from", "at step 4"))
    headings = page.text("h1", "h2")
    for heading in ("run", "Previews", "Curves", "Training images", "Settings", "Model and versions", "Commands"):
        assert heading in headings
    text = page.text()
    for said in (
        "4 of 4",
        ", finished;",
        "a photo of sks robot",
        "samples/s",
        "unet, sha256",
        "numpybooth sample --model",
    ):
        assert said in text, said
    links = {link["href"] for link in page.of("a")}
    assert links >= {"pipeline/", "samples/", "metrics.jsonl", "samples/step-000002.png", "samples/before_after.png"}
    assert all((finished / link).exists() for link in links)


def test_the_first_settings_are_those_that_differ(finished):
    rows = re.findall(r"<th scope=\"row\"><code>(.*?)</code>", (finished / "report.html").read_text())
    changed = list(gather(finished).changed)
    assert f"Settings that differ from the defaults: {len(changed)}" in page_of(finished).text("p")
    assert rows[: len(changed)] == changed and "train.steps" in changed and "train.max_grad_norm" not in changed
    assert "train.max_grad_norm" in rows[len(changed) :]


def test_it_needs_no_other_file_and_no_network(finished):
    text = (finished / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    for _, attributes in page.elements:
        assert not {"srcset", "background", "action", "xlink:href", "onload", "onclick"} & attributes.keys()
        assert attributes.get("src", "data:").startswith("data:")
        assert not re.match(r"[a-z]+:|//", attributes.get("href", ""))
    assert not page.of("link", "iframe", "base", "object", "embed", "form")
    style, (script, *others) = page.text("style"), [data for tag, data in page.texts if tag == "script"]
    assert "url(" not in style and "@import" not in style and not others
    assert not re.search(r"https?:|fetch|import|XMLHttp", script)
    policy = next(meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_it_can_be_read_by_all_and_at_any_width(finished):
    text = (finished / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.of("html") == [{"lang": "en"}] and len(page.of("h1")) == 1
    assert all(image["alt"] and int(image["width"]) > 0 for image in page.of("img"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), "none is left out"
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids) and {label["for"] for label in page.of("label")} <= set(ids)
    style = page.text("style")
    wide = re.findall(r"(?<!max-)(?<!\(min-)width:\s*([\d.]+)(rem|px)|minmax\(([\d.]+)(rem|px)", style)
    sizes = [float(a or b) * (16 if "rem" in (c, d) else 1) for a, c, b, d in wide]
    assert sizes and max(sizes) <= 360 - 2 * 16
    for variables in re.findall(r"\{\s*(--page[^}]*)\}", style):
        colours = dict(re.findall(r"--(\w+): (#\w+)", variables))
        for ground in ("page", "panel"):
            for name in colours.keys() - {"page", "panel", "line"}:
                assert contrast(colours[ground], colours[name]) >= 4.5, (ground, name)


def contrast(one, other):
    """WCAG 2.2, contrast ratio."""

    def luminance(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def test_texts_are_shown_and_not_run(config, photos, tmp_path):
    """Prompts, names of photos and of the run, captions, and a model's folder."""
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    for number, path in enumerate(sorted(photos.glob("*.png"))[:2]):
        name = f"{number}<b onclick='x'>&"
        shutil.copyfile(path, folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"{number} <i>caption</i> &amp;")
    config.instance.images, config.instance.prompt = str(folder), ""
    config.instance.captions, config.prior.prompt = "text", EVIL
    run = loop.train(FakeBackend, config, tmp_path / "<h1>run & 'co'", refresh=write.refresh).path
    page = page_of(run)
    assert len(page.of("script")) == 1 and len(page.of("h1")) == 1 and not page.of("b onclick", "i caption")
    assert not any("onerror" in attributes or "onclick" in attributes for _, attributes in page.elements)
    assert "<h1>run & 'co'" in page.text("h1") and page.text("title").startswith("<h1>run & 'co': report")
    assert EVIL.replace("\x1b", "\\x1b") in page.text("p")
    assert "0 <i>caption</i> &amp;" in page.text("figcaption")
    assert pictures(page, "Instance images: 0<b onclick='x'>&.png")


def test_each_concept_has_its_pictures(config, photos, tmp_path):
    for name in ("dog", "cat"):
        shutil.copytree(photos, tmp_path / name)
    (tmp_path / "cat" / "only.png").write_bytes((photos / "robot-0.png").read_bytes())
    config.concepts = (
        {"instance.images": str(tmp_path / "dog"), "instance.prompt": "a sks dog", "prior.prompt": "a dog"},
        {"instance.images": str(tmp_path / "cat"), "instance.prompt": "a zwx cat", "prior.prompt": "a cat"},
    )
    run = loop.train(FakeBackend, config, tmp_path / "run", refresh=write.refresh).path
    page = page_of(run)
    counts = Counter(image["alt"].partition(":")[0] for image in page.of("img"))
    assert counts == {
        "Instance images of concepts[0]": 5, "Class images of concepts[0]": 2,
        "Instance images of concepts[1]": 6, "Class images of concepts[1]": 2,
    }  # fmt: skip
    assert "a zwx cat" in page.text("p") and "concepts[1].instance.prompt" in page.text("code")


def test_it_is_there_while_a_run_trains(config, tmp_path):
    config.train.steps, config.checkpoint.every_steps, config.samples.every_steps = 6, 2, 3
    seen = []

    class Looking(FakeBackend):
        def train_step(self, state, batch):
            path = tmp_path / "run" / "report.html"
            seen.append(re.findall(r"<dd>(\d of 6)</dd>", path.read_text())[0] if path.exists() else "")
            return super().train_step(state, batch)

    run = loop.train(Looking, config, tmp_path / "run", refresh=write.refresh).path
    assert seen == ["", "", "2 of 6", "3 of 6", "4 of 6", "4 of 6"]
    assert "6 of 6" in page_of(run).text("dd")
    config.train.steps = 9
    with pytest.raises(KeyboardInterrupt):
        loop.train(watched(("train_step", 3)), config, run, refresh=write.refresh)
    page = page_of(run)
    assert "8 of 9" in page.text("dd") and "not finished" in page.text("p") and "Resume" in page.text("h3")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), UserError("full"), ZeroDivisionError("x")])
def test_a_run_goes_on_without_it(config, tmp_path, monkeypatch, caplog, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(write, "write_text", fails)
    run = loop.train(FakeBackend, config, tmp_path / "run", refresh=write.refresh)
    assert len(run.metrics) == 4 and (run.pipeline / "model_index.json").is_file()
    assert not (run.path / "report.html").exists()
    assert any("report.html is not up to date" in message for message in caplog.messages)


def test_nothing_goes_wrong_unseen(finished, caplog, tmp_path):
    """What the runs above would only warn of."""
    shutil.copytree(finished, tmp_path / "run")
    write.refresh(tmp_path / "run")
    assert not caplog.messages


@pytest.fixture
def quiet(monkeypatch):
    """`main` finds a log that is looked after, and leaves it to other tests as it is."""
    monkeypatch.setattr(logging.getLogger("booth"), "handlers", [logging.NullHandler()])


def test_by_command_for_a_run_that_was_copied(copied, caplog, quiet):
    """Another place, without its photos and its pipeline, by the other backend's command."""
    (copied / "report.html").unlink()
    shutil.rmtree(copied / "pipeline")
    for name, field, value in (
        ("config.json", "instance.images", "/nowhere/photos"), ("manifest.json", "train.from_the_future", 1)
    ):  # fmt: skip
        record = json.loads((copied / name).read_text())
        record["config"][field] = value
        (copied / name).write_text(json.dumps(record))
    assert main("torchbooth", ["report", "--run", str(copied)]) == 0
    assert any("'train.from_the_future' does not exist" in message for message in caplog.messages)
    page = page_of(copied)
    assert "They cannot be read in /nowhere/photos." in page.text("p")
    assert not pictures(page, "Instance") and len(pictures(page, "Class images")) == 2, "those came with the run"
    links = {link["href"] for link in page.of("a")}
    assert "pipeline/" not in links and all((copied / link).exists() for link in links)
    assert f"numpybooth sample --run {copied.absolute()}" in page.text("code")


def test_what_the_command_refuses(copied, tmp_path, capsys, quiet):
    def refused(folder):
        assert main("torchbooth", ["report", str(folder)]) == 2
        return capsys.readouterr().err

    (tmp_path / "empty").mkdir()
    assert "is not a run folder" in refused(tmp_path / "empty") and not list((tmp_path / "empty").iterdir())
    assert "is not a run folder" in refused(tmp_path / "nothing")
    with locked(copied):
        assert "another process is using this run" in refused(copied)
    (copied / "manifest.json").write_text("[1, 2")
    before = (copied / "report.html").read_bytes()
    assert "manifest.json is damaged" in refused(copied) and (copied / "report.html").read_bytes() == before


def test_a_run_begins_without_anything(copied):
    for name in ("metrics.jsonl", "manifest.json"):
        (copied / name).unlink()
    for name in ("samples", "class_images", "checkpoints", "pipeline", "cache", "tensorboard"):
        shutil.rmtree(copied / name)
    page = page_of(write.write(copied).parent)
    assert "0 of 4" in page.text("dd") and not page.of("img", "svg")


def test_a_strangers_run(copied, photos, tmp_path):
    """Numbers that are none, names that lead elsewhere, pictures that are none."""
    private = tmp_path / "private.png"
    shutil.copyfile(copied / "samples" / "step-000002.png", private)
    lines = [{"step": 1, "loss": 10**400, "samples_per_s": -1.0}, {"step": 2, "loss": "<b>", "learning_rate": None},
             {"step": 10**30, "loss": 1.0}, {"step": "3"}, {"step": 3, "loss": 1e299, "samples_per_s": 0}]  # fmt: skip
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 4, "loss": NaN, "prior_loss": Infinity}\n'
    (copied / "metrics.jsonl").write_text(text)
    manifest = json.loads((copied / "manifest.json").read_text())
    names = [os.path.relpath(private, photos), str(private), "robot-0.png"]
    assert (photos / names[0]).exists()
    manifest |= {"instance images": dict.fromkeys(names, ""), "captions": {"robot-0.png": 3}, "versions": {"x": [1]}}
    (copied / "manifest.json").write_text(json.dumps(manifest))
    (copied / "samples" / "before_after.png").write_bytes(b"no picture")
    (copied / "samples" / "step-000004.png").write_bytes(b"\x89PNG")
    page = page_of(write.write(copied).parent)
    assert len(pictures(page, "Instance images")) == 1 and len(pictures(page, "Preview")) == 1
    assert "samples/before_after.png cannot be read." in page.text("a")
    assert not re.search(r"\b(nan|inf)\b", " ".join(path["d"] for path in page.of("path")))


def test_it_stays_small(copied, tmp_path):
    """50 previews, 200 class images and 60 photos of nothing but noise, which no codec makes small, and long texts."""
    noise = np.random.default_rng(0).integers(0, 256, (1100, 1048, 3), np.uint8)
    for name, size in (("grid.png", 1100), ("picture.png", 512)):
        Image.fromarray(noise[:size, :size]).save(tmp_path / name, compress_level=0)
    for step in range(1, 51):
        os.link(tmp_path / "grid.png", copied / "samples" / f"step-{step:06d}.png") if step not in (2, 4) else None
    shutil.copyfile(tmp_path / "grid.png", copied / "samples" / "before_after.png")
    (tmp_path / "photos").mkdir()
    photos, made = [f"{n}{'x' * 200}.png" for n in range(60)], [f"class-{n + 10:05d}.png" for n in range(200)]
    for path in [*(tmp_path / "photos" / name for name in photos), *(copied / "class_images" / name for name in made)]:
        os.link(tmp_path / "picture.png", path)
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest |= {"instance images": dict.fromkeys(photos, ""), "class images": dict.fromkeys(made, "")}
    manifest["captions"] = dict.fromkeys(photos, "caption " * 10_000)
    manifest["config"] |= {"instance.prompt": "sks " * 100_000, "samples.prompts": ["prompt"] * 100_000}
    (copied / "manifest.json").write_text(json.dumps(manifest))
    record = json.loads((copied / "config.json").read_text())
    record["config"]["instance.images"] = str(tmp_path / "photos")
    (copied / "config.json").write_text(json.dumps(record))
    line = json.loads((copied / "metrics.jsonl").read_text().splitlines()[0])
    lines = [json.dumps(line | {"step": step, "loss": step % 7 + 0.1}) for step in range(1, 5_001)]
    (copied / "metrics.jsonl").write_text("\n".join(lines))
    page = page_of(write.write(copied).parent)
    assert 2_000_000 < (copied / "report.html").stat().st_size < 5_000_000
    for alt, limits in (("The instance", LARGE), ("Preview", PREVIEW), ("Instance", THUMBNAIL), ("Class", THUMBNAIL)):
        for image in pictures(page, alt):
            assert len(base64.b64decode(image["src"].partition(",")[2])) <= limits.size
    most = LARGE.size + PREVIEWS * PREVIEW.size + THUMBNAILS * THUMBNAIL.size
    assert most * 4 / 3 < 4_300_000, "and the rest of the page is less than 0.7 MB"
    shown = [int(re.search(r"\d+", image["alt"])[0]) for image in pictures(page, "Preview")]
    assert len(shown) == 20 and shown[0] == 1 and shown[-1] == 50 and set(np.diff(shown)) <= {2, 3}
    assert "20 of 50 shown" in page.text("p")
    assert len(pictures(page, "Instance images")) == len(pictures(page, "Class images")) == 18


def test_smoothing_is_an_average_without_a_bias():
    assert np.allclose(smoothed(np.full(100, 3.5)), 3.5) and len(smoothed(np.empty(0))) == 0
    values = np.random.default_rng(0).standard_normal(200)
    weights = 0.9 ** np.arange(200)[::-1]
    assert smoothed(values)[-1] == pytest.approx((weights * values).sum() / weights.sum())
    assert np.array_equal(smoothed(values[:15]), values[:15]), "few are left as they are"


@pytest.mark.parametrize("count", [1, 2, 399, 10_000])
def test_a_chart_holds_its_curves(count):
    """All in the picture but what lies behind, of which no peak is lost; the scale in round numbers."""
    rng = np.random.default_rng(count)
    steps, values = np.arange(1, count + 1), rng.uniform(0.3, 0.9, count)
    behind = np.full(count, 0.6)
    behind[count // 2] = 5.0
    figure = chart("Loss", [Curve("total", steps, values)], Curve("", steps, behind), from_zero=False)
    paths = {path.get("class"): path.get("d") for path in figure.iter("path")}
    points = {name: re.findall(r"(-?[\d.]+) (-?[\d.]+)", d) for name, d in paths.items()}
    assert len(points["total"]) == min(count, _POINTS) and len(points["behind"]) <= _POINTS + 1
    assert all(0 <= float(x) <= 1000 and 0 <= float(y) <= 300 for x, y in points["total"])
    assert min(float(y) for _, y in points["behind"]) < 0, "the peak"
    assert float(points["total"][0][0]) == 0 and (count == 1 or float(points["total"][-1][0]) == 1000)
    ticks = [float(span.text) for span in figure.iter("span") if span.get("class") == "tick"]
    assert ticks[0] <= values.min() and ticks[-1] >= values.max() and len(ticks) <= 7
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_a_runs_own_config_resumes_it(config, tmp_path):
    config.train.steps, config.samples.prompts = 2, ("one", "two")
    config.concepts = ({"instance.prompt": "a sks robot", "weight": 2.0},)
    run = loop.train(FakeBackend, config, tmp_path / "run", refresh=write.refresh)
    again = load_config(run.path / "config.json", [("train.steps", "4")])
    config.train.steps = 4
    assert again == resolved(config)
    assert [line["step"] for line in loop.train(FakeBackend, again, run.path, refresh=write.refresh).metrics] == [
        1,
        2,
        3,
        4,
    ]


def test_commands_fit_the_run(copied):
    said = gather(copied)
    run = copied.absolute()
    evaluate = f"numpybooth evaluate --run {run}"
    assert said.commands["Find the best checkpoint"].startswith(
        f"{evaluate} --dino facebook/dino-vits16 --clip openai/"
    )
    assert said.commands["Export a checkpoint"] == f"numpybooth export --run {run} --out exported"
    single = f"numpybooth export --run {run} --format single-file --out copied.safetensors"
    assert said.commands["Export for WebUIs"] == single
    evaluation = Evaluation({}, checkpoints=[Scored(2, "", {}, {"score": 0.0})])
    assert replace(said, evaluation=evaluation).commands == said.commands, "none is good"
    evaluation.checkpoints.append(Scored(4, "", {}, {"score": 0.5}))
    said = replace(said, evaluation=evaluation)
    assert said.commands["Export a checkpoint"] == f"numpybooth export --run {run} --best --out exported"
    said.config.adapter.kind = "lora"
    kohya = f"numpybooth export --run {run} --best --format kohya --out copied.safetensors"
    assert said.commands["Export for WebUIs"] == kohya
    said.config.model.source = "embedded"
    assert said.commands["Find the best checkpoint"] == evaluate
    said.config.prior.prompt = ""
    assert "Find the best checkpoint" not in said.commands


def test_pictures_are_made_small_once(config, tmp_path, monkeypatch):
    from booth.report import pictures

    made = []
    real = pictures.pictures.thumbnail
    monkeypatch.setattr(
        pictures.pictures,
        "thumbnail",
        lambda path, *limits: (made.append(Path(path).name), real(path, *limits))[1],
    )
    config.checkpoint.every_steps, config.samples.every_steps = 1, 2
    loop.train(FakeBackend, config, tmp_path / "run", refresh=write.refresh)
    counts = Counter(made)
    assert counts["step-000002.png"] == counts["step-000004.png"] == counts["class-00000.png"] == 1


def test_photos_of_a_dataset_are_found_where_it_was_unpacked(copied, photos, tmp_path, monkeypatch):
    """Known by their content, as another dataset's have the same names."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("another", "dataset"):
        shutil.copytree(photos, tmp_path / "booth" / "datasets" / name)
    Image.new("RGB", (40, 20), "red").save(tmp_path / "booth" / "datasets" / "another" / "robot-0.png")
    record = json.loads((copied / "config.json").read_text())
    record["config"]["instance.images"] = "owner/robots"
    (copied / "config.json").write_text(json.dumps(record))
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["images from the hub"] = {"source": "owner/robots", "revision": "", "commit": "0123abcd"}
    (copied / "manifest.json").write_text(json.dumps(manifest))
    assert gather(copied).albums[0].folder.name == "dataset"
    page = page_of(write.write(copied).parent)
    assert len(pictures(page, "Instance images")) == 5 and "dataset, commit" in page.text("code")
    shutil.rmtree(tmp_path / "booth" / "datasets" / "dataset")
    assert not pictures(page_of(write.write(copied).parent), "Instance images")

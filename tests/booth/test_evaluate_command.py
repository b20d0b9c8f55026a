"""`evaluate` over the NumPy backend: the best of a run's checkpoints, measured once, taken up again, exported."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
from etils import epath
from fake_backend import FakeBackend, watched
from PIL import Image

from booth.commands import cli, evaluate, export
from booth.data.image_file import load_image
from booth.data.image_folder import find_images
from booth.evaluate.prompts import OBJECTS
from booth.evaluate.scores import Seen
from booth.evaluate.yardstick import look
from booth.train import loop
from booth.train.checkpoints import Checkpoints

COUNTS = ("--instance-images", 3, "--class-images", 2, "--settings", "objects")


class Colours:
    """Sees in a picture its colours in rough, and reads each text as a grey that is none of the photos'."""

    prompt_measure = "said"
    recipe = {"colours": "1"}  # noqa: RUF012 (nothing writes into it)
    looks = 0

    def look(self, pictures):
        Colours.looks += 1
        rough = [np.asarray(Image.fromarray(picture).resize((4, 4)), np.float32).ravel() - 128 for picture in pictures]
        vectors = np.stack(rough)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return Seen({"colour": vectors}, vectors)

    def read(self, texts):
        return np.full((len(texts), 48), -(48**-0.5), np.float32)


@pytest.fixture(scope="module")
def trained(make_tiny_config, tmp_path_factory):
    config = make_tiny_config()
    config.checkpoint.every_steps, config.checkpoint.keep, config.train.steps = 1, 9, 3
    config.train.learning_rate, config.samples.inference_steps = 0.3, 2
    folder = tmp_path_factory.mktemp("trained") / "run"
    loop.train(FakeBackend, config, folder)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def main(monkeypatch, capsys, caplog):
    """Runs a command; what it printed, or its error."""
    monkeypatch.setattr(cli, "_log_to_stderr", lambda: None)
    monkeypatch.setattr("booth.commands.cli.log.propagate", True)
    caplog.set_level("INFO", "booth")

    def main(*arguments, backend=FakeBackend, judge=True):
        for module in (evaluate, export):
            monkeypatch.setattr(module, "load_backend", lambda package: backend)
        if judge:
            monkeypatch.setattr(evaluate, "judge_of", lambda *named: Colours())
        code = cli.main("torchbooth", [*map(str, arguments)])
        done = capsys.readouterr()
        return done.err.splitlines()[-1].removeprefix("torchbooth: error: ") if code else done.out

    return main


def files(run, name):
    (folder,) = (run / "evaluation" / "pictures").glob(f"{name}-*")
    return sorted(folder.iterdir())


def test_each_checkpoint_is_measured_and_the_best_is_named(run, main, measuring_networks, photos):
    """With real networks, and once more from the pictures in the folder by hand."""
    printed = main("evaluate", "--run", run, *COUNTS, "--dino", measuring_networks / "dino",
                   "--clip", measuring_networks / "clip", judge=False)  # fmt: skip
    from torchbooth.vision import Clip, Dino

    found = json.loads((run / "evaluation" / "scores.json").read_text())
    dino, clip = (network(str(measuring_networks / name)) for network, name in ((Dino, "dino"), (Clip, "clip")))
    real = [np.asarray(load_image(path)) for path in find_images(photos, "")]
    texts = clip.read([template.replace("{}", "robot") for template in OBJECTS])
    assert [entry["step"] for entry in found["checkpoints"]] == [1, 2, 3]
    for entry in found["checkpoints"]:
        made = [np.asarray(Image.open(path)) for path in files(run, f"step-{entry['step']:06d}")]
        assert len(made) == 3 + 25 + 2
        subject, of_class = dino.look(made[:28]), dino.look(made[28:])
        base = dino.look([np.asarray(Image.open(path)) for path in files(run, "base")[28:]])
        expected = {
            "dino": (subject @ dino.look(real).T).mean(), "clip_i": (clip.look(made[:28]) @ clip.look(real).T).mean(),
            "clip_t": np.mean([a @ b for a, b in zip(clip.look(made[3:28]), texts, strict=True)]),
            "pres": (of_class @ dino.look(real).T).mean(), "diversity": 1 - of_class[0] @ of_class[1],
            "like_base": np.mean([a @ b for a, b in zip(of_class, base, strict=True)]),
        }  # fmt: skip
        assert entry["measures"] == pytest.approx(expected, abs=1e-5)
    prompts = found["recipe"]["pictures"]
    assert prompts[0] == ["a photo of sks robot", 1000] and prompts[3] == ["a sks robot in the jungle", 1003]
    assert prompts[-1] == ["a photo of robot", 1029]
    header, _, *lines = printed.splitlines()
    assert (
        header == "| step | dino | clip_i | clip_t | pres | like_base | diversity | subject | prompt | prior | score |"
    )
    marked = [line.split("|")[1].strip() for line in lines]
    best = found["best"]
    steps = [f"**{step} (best)**" if step == best else str(step) for step in (1, 2, 3)]
    assert marked == ["photos", "base", *steps]


class Scripted:
    """Sees what it is told: of the photos one thing, of the base's pictures two others in turn, of each checkpoint's
    the photos' to these parts, in pictures of the subject and of the class."""

    prompt_measure = ""
    recipe = {"scripted": "1"}  # noqa: RUF012 (nothing writes into it)

    def __init__(self, *parts):
        self.parts = [(0, 0), *parts]

    def look(self, pictures):
        if len(pictures) == 5:
            return Seen({"told": np.tile([1.0, 0, 0], (5, 1))})
        subject, of_class = self.parts.pop(0)
        part = np.repeat([subject, of_class], [len(pictures) - 2, 2])
        rest = np.sqrt(1 - part**2)
        first = np.arange(len(pictures)) % 2
        return Seen({"told": np.stack([part, rest * first, rest * (1 - first)], axis=1)})

    def read(self, texts):
        return None


def test_learning_counts_and_a_class_that_turns_into_the_subject_does_not(run, main, monkeypatch, caplog):
    judge = Scripted((0.5, 0), (0.8, 0), (1, 0.6))
    monkeypatch.setattr(evaluate, "judge_of", lambda *named: judge)
    printed = main("evaluate", "--run", run, *COUNTS, judge=False)
    assert "| **2 (best)** | 0.800 | 0.000 | 1.000 | 1.000 | 0.800 |  | 1.000 | 0.894 |" in printed
    found = json.loads((run / "evaluation" / "scores.json").read_text())
    assert found["photos"] == {"told": 1} and found["base"] == {"told": 0, "pres": 0, "like_base": 1, "diversity": 1}
    shares = [entry["shares"] for entry in found["checkpoints"]]
    assert shares[0] == pytest.approx({"subject": 0.5, "prior": 1, "score": 0.5**0.5})
    assert shares[2] == pytest.approx({"subject": 1, "prior": 0.64 * 0.4, "score": (0.64 * 0.4) ** 0.5})
    assert found["best"] == 2
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == ["how well pictures follow their prompts is not measured; give --clip to measure it"]


@pytest.mark.parametrize(("part", "warned"), [(0.09, True), (0.11, False)])
def test_a_best_that_has_hardly_learned_is_warned_of(run, main, monkeypatch, caplog, part, warned):
    judge = Scripted((0.01, 0), (part, 0), (0.02, 0))
    monkeypatch.setattr(evaluate, "judge_of", lambda *named: judge)
    assert "**2 (best)**" in main("evaluate", "--run", run, *COUNTS, judge=False)
    said = f"the best checkpoint has hardly learned the subject ({part:.3f}): train longer, or with a higher rate"
    assert (said in caplog.messages) == warned


def test_what_is_known_is_not_done_again(run, main):
    backend, Colours.looks = watched(), 0
    first = main("evaluate", "--run", run, *COUNTS, backend=backend)
    record = run / "evaluation" / "scores.json"
    before, looks = record.read_bytes(), Colours.looks
    assert looks == 5, "photos, base, three checkpoints"
    batches = backend.calls.count("sample")
    assert main("evaluate", "--run", run, *COUNTS, backend=backend) == first
    assert (record.read_bytes(), Colours.looks, backend.calls.count("sample")) == (before, looks, batches)

    (run / "evaluation" / "scores.png").unlink()
    files(run, "step-000002")[4].unlink()
    content = json.loads(before)
    del content["checkpoints"][1]
    record.write_text(json.dumps(content))
    assert main("evaluate", "--run", run, *COUNTS, backend=backend) == first
    assert record.read_bytes() == before and (run / "evaluation" / "scores.png").is_file()
    page = (run / "report.html").read_text(encoding="utf-8")
    assert (
        "Which checkpoint?" in page and "No checkpoint has a score above 0." in page and "Measured by evaluate" in page
    )
    assert Colours.looks == looks + 3 and backend.calls.count("sample") == batches + 1

    shutil.rmtree(run / "evaluation")
    assert main("evaluate", "--run", run, *COUNTS) == first and record.read_bytes() == before, "deterministic"


def test_other_recipes_and_other_checkpoints_are_measured_anew(run, main):
    main("evaluate", "--run", run, *COUNTS)
    record = run / "evaluation" / "scores.json"
    before = json.loads(record.read_text())
    third = run / "checkpoints" / "step-000003"
    shutil.copy(run / "checkpoints" / "step-000001" / "state.npz", third / "state.npz")
    recorded = json.loads((run / "checkpoints" / "step-000001" / "checkpoint.json").read_text())
    (third / "checkpoint.json").write_text(json.dumps({**recorded, "step": 3}))
    main("evaluate", "--run", run, *COUNTS)
    after = json.loads(record.read_text())
    assert after["checkpoints"][:2] == before["checkpoints"][:2]
    assert after["checkpoints"][2]["measures"] == before["checkpoints"][0]["measures"]
    main("evaluate", "--run", run, *COUNTS, "--instance-images", 4)
    assert json.loads(record.read_text())["checkpoints"][0]["measures"] != before["checkpoints"][0]["measures"]
    shutil.rmtree(run / "checkpoints" / "step-000002")
    assert "| 2 |" not in main("evaluate", "--run", run, *COUNTS, "--instance-images", 4)
    assert [entry["step"] for entry in json.loads(record.read_text())["checkpoints"]] == [1, 3]


def test_an_interrupted_evaluation_keeps_what_it_has(run, main):
    whole = main("evaluate", "--run", run, *COUNTS)
    expected = (run / "evaluation" / "scores.json").read_bytes()
    shutil.rmtree(run / "evaluation")
    backend = watched(("sample", 35))  # 15 batches of two for each model
    main("evaluate", "--run", run, *COUNTS, backend=backend)
    found = json.loads((run / "evaluation" / "scores.json").read_text())
    assert [entry["step"] for entry in found["checkpoints"]] == [1]
    assert len(files(run, "step-000002")) == 8
    backend = watched()
    assert main("evaluate", "--run", run, *COUNTS, backend=backend) == whole
    assert (run / "evaluation" / "scores.json").read_bytes() == expected
    assert backend.calls.count("sample") == 60 - 34


def test_export_takes_the_best(run, main, tmp_path):
    assert main("export", "--run", run, "--best", "--out", tmp_path / "out").endswith(f"evaluate --run {run}")
    main("evaluate", "--run", run, *COUNTS)
    record = run / "evaluation" / "scores.json"
    content = json.loads(record.read_text())
    for entry in content["checkpoints"]:
        entry["shares"]["score"] = float(entry["step"] == 2)
    record.write_text(json.dumps(content))
    main("export", "--run", run, "--best", "--out", tmp_path / "best")
    assert json.loads((tmp_path / "best" / "export.json").read_text())["step"] == 2
    for wrong in (("--run", run, "--step", 1), ("--from", tmp_path / "best")):
        said = main("export", *wrong, "--best", "--out", tmp_path / "out")
        assert said == "--best chooses a checkpoint of --run; give --run, and no --step"
    export = ("export", "--run", run, "--best", "--out", tmp_path / "out")
    content["checkpoints"][1]["identity"] = "another"
    record.write_text(json.dumps(content))
    assert "was trained again after it was evaluated" in main(
        "export", "--run", run, "--best", "--out", tmp_path / "out"
    )
    content["checkpoints"][1]["shares"]["score"] = 0.0
    record.write_text(json.dumps(content))
    assert "has a score above 0" in main(*export)
    record.write_text("{")
    assert "has no evaluation" in main(*export)
    assert not (tmp_path / "out").exists()


def test_the_best_is_of_those_that_have_a_score(run, main, tmp_path, caplog):
    main("evaluate", "--run", run, *COUNTS)
    record = run / "evaluation" / "scores.json"
    content = json.loads(record.read_text())
    content["checkpoints"][0]["shares"]["score"] = 1.0

    def said(name):
        record.write_text(json.dumps(content))
        caplog.clear()
        main("export", "--run", run, "--best", "--out", tmp_path / name)
        assert (tmp_path / name).is_dir()
        return [message for message in caplog.messages if "no score" in message]

    assert not said("all")
    content["checkpoints"][1]["identity"] = "of another training"
    assert said("two") == ["--best: step 2 has no score; evaluate again"]
    del content["checkpoints"][2]
    assert said("one") == ["--best: steps 2, 3 have no score; evaluate again"]


def test_a_checkpoint_in_a_bucket_is_known_by_its_time_too(run):
    """Its record has no hashes there."""
    record = run / "checkpoints" / "step-000001" / "checkpoint.json"
    kept, bucket = (Checkpoints(epath.Path(run / "checkpoints"), "id") for _ in range(2))
    bucket._in_bucket = True
    before = kept.identity(1), bucket.identity(1)
    assert kept.identity(2) != before[0] and bucket.identity(1) == before[1] != before[0]
    os.utime(record, (1, 1))
    assert kept.identity(1) == before[0] and bucket.identity(1) != before[1]


def test_the_embedded_base_is_judged_by_the_yardstick(make_tiny_config, main, tmp_path):
    config = make_tiny_config()
    config.model.source, config.train.steps, config.samples.inference_steps = "embedded", 1, 1
    loop.train(FakeBackend, config, tmp_path / "run")
    printed = main("evaluate", "--run", tmp_path / "run", *COUNTS[:4], "--setting-images", 2, judge=False)
    assert printed.startswith("| step | identity | setting | pres |")
    found = json.loads((tmp_path / "run" / "evaluation" / "scores.json").read_text())
    made = [np.asarray(Image.open(path)) for path in files(tmp_path / "run", "step-000001")]
    settings = (
        "beach",
        "snow",
        "night",
        "forest",
        "water",
        "kitchen",
        "bed",
        "garden",
        "city",
        "rain",
        "mountain",
        "moon",
    )
    asked = np.repeat(settings, 2)
    assert len(made) == 3 + 24 + 2
    right = np.mean(np.array(look(made[3:27]).setting_names) == asked)
    assert found["checkpoints"][0]["measures"]["setting"] == pytest.approx(right)
    assert found["recipe"]["pictures"][5][0] == "a photo of a sks robot in the snow"


def test_the_sheet_shows_all_beside_each_other(run, main):
    main("evaluate", "--run", run, *COUNTS)
    width, height = Image.open(run / "evaluation" / "scores.png").size
    assert width > 8 * 128 and height > 5 * 128, "photos, base, three checkpoints; eight pictures each"


def test_what_cannot_be_evaluated_is_one_line(run, main, monkeypatch):
    def said(*arguments, **fields):
        record = json.loads((run / "manifest.json").read_text())
        changed = {**record, "config": {**record["config"], **fields}}
        (run / "manifest.json").write_text(json.dumps(changed))
        try:
            return main("evaluate", "--run", run, *arguments, judge=False)
        finally:
            (run / "manifest.json").write_text(json.dumps(record))

    assert said().startswith("--dino or --clip is missing: give a folder or hub id of DINO weights")
    assert said(**{"instance.prompt": "a photo, {caption}"}).startswith("--prompt is missing")
    assert said(**{"prior.prompt": ""}).startswith("--class-prompt is missing")
    concepts = [{"instance.images": "a"}, {"instance.images": "b"}]
    assert said(concepts=concepts).endswith("evaluate needs a run of one subject")
    assert "--class-images: 1 must be a whole number, at least 2" in said("--class-images", 1)
    assert "--settings nothing must be auto, objects" in said("--settings", "nothing", "--dino", "d")
    monkeypatch.setitem(sys.modules, "torchbooth.vision", None)
    assert said("--dino", "d").startswith("--dino and --clip need PyTorch (")
    shutil.rmtree(run / "checkpoints")
    assert said().endswith(f"has no checkpoint in {run / 'checkpoints'}")
    assert not (run / "evaluation").exists()

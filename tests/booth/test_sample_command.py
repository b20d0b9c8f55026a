"""The `sample` command over the NumPy backend: prompts from files, text in each PNG, batches by memory, X/Y grids."""

import hashlib
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from fake_backend import FakeBackend
from PIL import Image

from booth.commands import cli, xy_grid
from booth.commands.png_text import Recipe, infotext
from booth.commands.xy_grid import read_axes, varied
from booth.common.errors import OutOfMemory, UserError
from booth.config.choices import SOLVERS
from booth.data import pictures
from booth.models import export_single_file
from booth.models.open import open_pipeline
from booth.train import loop

RECIPE = Recipe("a photo of sks dog", "", 42, "dpm++", 25, 7.5)


class Scarce(FakeBackend):
    """Has memory for two images at once."""

    survives_out_of_memory = True
    most = 2
    batches: list[int] = []  # noqa: RUF012 (one list for all instances is what is wanted)

    def sample(self, models, noise, *arguments):
        self.batches.append(len(noise))
        if len(noise) > self.most:
            raise OutOfMemory("out of memory in class images; lower prior.batch_size")
        return super().sample(models, noise, *arguments)


@pytest.fixture
def sample(tiny_pipeline, tmp_path, monkeypatch, capsys, caplog):
    """Runs the command in a folder; its images by name, with what the command said."""

    def sample(*arguments, backend=FakeBackend, out="out", source=("--model", tiny_pipeline)):
        monkeypatch.setattr("booth.commands.sample.load_backend", lambda package: backend)
        monkeypatch.setattr(cli, "_log_to_stderr", lambda: None)
        steps = () if any(str(argument).startswith("steps=") for argument in arguments) else ("--steps", 2)
        given = ["sample", *source, *steps, "--size", 64, "--out", tmp_path / out, *arguments]
        code = cli.main("torchbooth", [*map(str, given)])
        if code:
            lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
            assert len(lines) == 1
            return lines[0].removeprefix("torchbooth: error: ")
        return {path.name: Image.open(path) for path in sorted((tmp_path / out).iterdir())}

    monkeypatch.setattr("booth.commands.cli.log.propagate", True)
    caplog.set_level("INFO", "booth")
    return sample


def read(text):
    """As AUTOMATIC1111's WebUI reads it (`parse_generation_parameters`), by its rules: the last line has the fields if
    there are three or more, the lines before it the prompt and from "Negative prompt:" on the negative one."""
    *lines, last = text.split("\n")
    fields = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    assert len(fields) >= 3
    texts = {"prompt": [], "negative": []}
    into = "prompt"
    for line in lines:
        if line.startswith("Negative prompt:"):
            into, line = "negative", line.removeprefix("Negative prompt:").strip()
        texts[into].append(line)
    values = {name: json.loads(value) if value.startswith('"') else value for name, value in fields}
    return "\n".join(texts["prompt"]), "\n".join(texts["negative"]), values


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_webui_knows_every_solver(solver):
    assert ", Sampler: " in infotext(replace(RECIPE, solver=solver), (64, 64), "m")


def test_what_a_webui_reads():
    assert infotext(RECIPE, (512, 640), "dog-000800", "0123456789") == (
        "a photo of sks dog\nSteps: 25, Sampler: DPM++ 2M, Schedule type: Uniform, CFG scale: 7.5, Seed: 42,"
        " Size: 512x640, Model hash: 0123456789, Model: dog-000800"
    )
    text = infotext(Recipe("a dog, (red)", "blurry", 0, "euler_a", 30, 7.0, 4), (64, 64), "m")
    assert text == (
        "a dog, (red)\nNegative prompt: blurry\n"
        "Steps: 30, Sampler: Euler a, CFG scale: 7, Seed: 0, Size: 64x64, Model: m"
    )


@pytest.mark.parametrize("model", ["plain", "a, b", "a: b", "C:\\models\\dog", 'a "quoted", name', "größer, 犬"])
@pytest.mark.parametrize("prompt", ["a dog", "a dog, Steps: 3, Seed: 5", "two\nlines: of, text", "犬, größer", ""])
def test_every_field_is_read_again(prompt, model):
    for negative in ("", "blurry, ugly\nSize: 3x3"):
        text = infotext(Recipe(prompt, negative, 2**63 - 1, "pndm", 7, 12.3456789), (64, 96), model, "abc")
        read_prompt, read_negative, fields = read(text)
        assert (read_prompt, read_negative) == (prompt, negative) or (prompt == negative == "" == read_prompt)
        assert fields == {"Steps": "7", "Sampler": "PLMS", "CFG scale": "12.3456789", "Seed": str(2**63 - 1),
                          "Size": "64x96", "Model hash": "abc", "Model": model}  # fmt: skip


def test_each_png_says_how_it_was_made(sample, tmp_path):
    images = sample("--prompt", "a dog, red", "--prompt", "犬", "--negative-prompt", "no, not this", "--seeds", 3, 4,
                    "--solver", "euler_a", "--guidance", 2)  # fmt: skip
    texts = [read(image.text["parameters"]) for name, image in images.items() if name != "grid.png"]
    assert [text[:2] for text in texts] == [("a dog, red", "no, not this")] * 2 + [("犬", "no, not this")] * 2
    assert [text[2]["Seed"] for text in texts] == ["3", "4", "3", "4"]
    assert texts[0][2].items() >= {"Steps": "2", "Sampler": "Euler a", "CFG scale": "2", "Size": "64x64"}.items()
    assert re.fullmatch("[0-9a-f]{10}", texts[0][2]["Model hash"]) and texts[0][2]["Model"] == "tiny"
    files = [(tmp_path / "out" / name).read_bytes() for name in list(images)[:3]]
    assert b"tEXtparameters" in files[0] and b"iTXtparameters" in files[2], "not all of it is Latin-1"
    assert not images["grid.png"].text


def test_a_single_file_has_the_hash_that_webuis_show(sample, tiny_pipeline, tmp_path):
    file = tmp_path / "my-dog.v2.safetensors"
    export_single_file.write(open_pipeline(tiny_pipeline), file)
    images = sample("--prompt", "a", source=("--model", file, "--model-config", tiny_pipeline))
    fields = read(images["000-a-seed0.png"].text["parameters"])[2]
    expected = hashlib.sha256(file.read_bytes()).hexdigest()[:10]
    assert (fields["Model hash"], fields["Model"]) == (expected, "my-dog.v2")


def test_prompts_from_a_file(sample, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeff# the beach\n\n  a robot, red \n#no\na lamp # 5\n".encode())
    images = sample("--prompts", file, "--prompt", "first", "--seeds", 1)
    prompts = [read(image.text["parameters"])[0] for name, image in images.items() if name != "grid.png"]
    assert prompts == ["first", "a robot, red", "a lamp # 5"]
    file.write_text("# nothing\n\n")
    assert sample("--prompts", file).endswith("contains no prompt; write one on each line")
    file.write_bytes(b"\xff\xfe")
    assert sample("--prompts", file).endswith("is not all UTF-8; save it as UTF-8")
    assert "nowhere" in sample("--prompts", tmp_path / "nowhere")
    assert sample().endswith("arguments are required: --prompt (or --prompts FILE)")


def pixels(images, but=("grid.png", "xy.png")):
    return [np.asarray(image) for name, image in images.items() if name not in but]


def test_batches_by_memory(sample, caplog, monkeypatch):
    monkeypatch.setattr(Scarce, "batches", [])
    given = ("--prompt", "a robot", "--seeds", *range(7))
    halved = sample(*given, "--batch-size", "auto", backend=Scarce)
    assert Scarce.batches == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert [text.partition(" (")[0] for text in caplog.messages[:2]] == [
        f"memory ran out: from here on {count} images at once" for count in (3, 1)
    ]
    plain = sample(*given, out="plain")
    assert all(np.array_equal(one, other) for one, other in zip(pixels(halved), pixels(plain), strict=True))
    assert len({image.tobytes() for image in pixels(plain)}) == 7
    said = sample(*given, "--batch-size", 4, backend=Scarce, out="none")
    assert said == "out of memory in class images; lower --batch-size or --size"
    monkeypatch.setattr(Scarce, "most", 0)
    assert sample(*given, "--batch-size", "auto", backend=Scarce, out="none") == said
    assert "cannot continue once memory has run out" in sample(*given, "--batch-size", "auto")
    assert sample(*given, "--batch-size", "many") == "--batch-size many must be at least 1, or auto"


def test_no_more_is_computed_than_asked_for(sample, monkeypatch):
    monkeypatch.setattr(Scarce, "batches", [])
    sample("--prompt", "a robot", backend=Scarce)
    assert Scarce.batches == [1]


def test_a_grid_of_two_axes(sample, monkeypatch):
    shown, real = [], pictures.xy_grid
    monkeypatch.setattr(pictures, "xy_grid", lambda *given: shown.append(given) or real(*given))
    images = sample(
        "--prompt", "a robot", "--seeds", 5, "--x", "guidance=1,3", "--y", "steps=2,3,4", "--solver", "ddim"
    )
    (made, across, down), = shown  # fmt: skip
    assert (across, down) == (["guidance 1", "guidance 3"], ["steps 2", "steps 3", "steps 4"])
    assert list(images)[-1] == "xy.png" and len(images) == 7
    assert all(np.array_equal(one, other) for one, other in zip(made, pixels(images), strict=True))
    for place, (steps, guidance) in enumerate((steps, guidance) for steps in (2, 3, 4) for guidance in (1, 3)):
        fields = read(list(images.values())[place].text["parameters"])[2]
        assert (fields["Steps"], fields["CFG scale"], fields["Seed"]) == (str(steps), str(guidance), "5")
        (alone, _) = pixels(sample("--prompt", "a robot", "--seeds", 5, "--guidance", guidance, "--steps", steps,
                                   "--solver", "ddim", out=f"alone {place}"), but=())  # fmt: skip
        assert np.array_equal(alone, made[place])
    assert len({image.tobytes() for image in made}) == 6


def test_axes_of_text_and_seeds(sample):
    images = sample("--x", "prompt=a dog, red|a lamp", "--y", "negative_prompt=|blurry")
    assert [read(image.text["parameters"])[:2] for image in list(images.values())[:4]] == [
        ("a dog, red", ""), ("a lamp", ""), ("a dog, red", "blurry"), ("a lamp", "blurry")
    ]  # fmt: skip
    images = sample("--prompt", "a dog", "--y", "seed=3,1", out="seeds")
    assert list(images) == ["000-a-dog-seed3.png", "001-a-dog-seed1.png", "xy.png"]
    images = sample("--prompt", "a dog", "--x", "solver=ddim,euler_a", out="solvers")
    assert [read(image.text["parameters"])[2]["Sampler"] for image in list(images.values())[:2]] == ["DDIM", "Euler a"]


def test_checkpoints_side_by_side(sample, tiny_config, tmp_path):
    tiny_config.checkpoint.every_steps, tiny_config.train.steps, tiny_config.train.learning_rate = 1, 3, 0.5
    tiny_config.checkpoint.keep = 5
    loop.train(FakeBackend, tiny_config, tmp_path / "run")
    source = ("--run", tmp_path / "run")
    given = ("--prompt", "a robot", "--seeds", 1)
    grid = sample(*given, "--x", "checkpoint=3,1,2", "--y", "guidance=2,4", source=source)
    assert [read(image.text["parameters"])[2]["Model"] for image in list(grid.values())[:6]] == [
        f"run-00000{step}" for step in (3, 1, 2) * 2
    ]
    for place, (guidance, step) in enumerate((guidance, step) for guidance in (2, 4) for step in (3, 1, 2)):
        alone = sample(*given, "--guidance", guidance, "--step", step, source=source, out=f"alone {place}")
        assert np.array_equal(pixels(alone)[0], pixels(grid)[place])
    assert len({image.tobytes() for image in pixels(grid)}) == 6
    assert "step 9 has no checkpoint in" in sample(*given, "--x", "checkpoint=1,9", source=source, out="no")
    for wrong in (("--step", 2, *source), ("--model", "m")):
        said = sample(*given, "--x", "checkpoint=1", *wrong[:-2], source=wrong[-2:], out="no")
        assert said == "the axis checkpoint names checkpoints of --run; give --run, and no --step"
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("axes", "said"),
    [(["--x", "cfg=3,5"], "--x 'cfg=3,5' must be NAME=VALUE,VALUE,... where NAME is one of guidance, steps, seed,"),
     (["--y", "guidance"], "--y guidance: '' must be a finite number, at least 0; values are separated by ','"),
     (["--x", "guidance=3,x"], "--x guidance: 'x' must be a finite number"),
     (["--x", "guidance=nan"], "--x guidance: 'nan' must be a finite"), (["--x", "steps=2.5"], "--x steps: '2.5' must"),
     (["--x", "steps=0"], "--x steps: '0' must be a whole number, at least 1"),
     (["--x", "steps=2,2000"], "inference steps 2000 must be from 1 to 999"),
     (["--x", "seed=1,-2"], "--x seed: '-2' must be from 0 to 2**63 - 1"),
     (["--x", "solver=ddim,heun"], "--x solver: 'heun' must be one of dpm++, ddim, euler, euler_a, pndm"),
     (["--x", "steps=2", "--y", "steps=3"], "--x and --y are both steps; give two different names"),
     (["--x", "steps=2", "--x", "seed=3"], "--x is given twice; a grid has one axis across (--x) and one down (--y)"),
     (["--x", "steps=2", "--seeds", "1", "2"], "has one seed: give one with --seeds, or make seed an axis"),
     (["--x", "steps=2", "--prompt", "b"], "has one prompt: give one with --prompt, or make prompt an axis"),
     (["--x", "steps=2,3", "--steps", "25"], "--steps is given beside the axis steps, which sets the same; give only"),
     (["--y", "seed=2", "--seeds", "0"], "--seeds is given beside the axis seed"),
     (["--x", "seed=2", "--y", "solver=ddim", "--solver", "dpm++"], "--solver is given beside the axis solver"),
     (["--x", "guidance=1", "--guidance", "7.5"], "--guidance is given beside the axis guidance"),
     (["--x", "lora_weight=1", "--lora-weight", "1"], "--lora-weight is given beside the axis lora_weight"),
     (["--x", "negative_prompt=b", "--negative-prompt", "c"], "--negative-prompt is given beside the axis"),
     (["--x", "prompt=b"], "--prompt is given beside the axis prompt")],
)  # fmt: skip
def test_axes_that_cannot_be(sample, axes, said, tmp_path):
    assert said in sample("--prompt", "a", *axes)
    assert not (tmp_path / "out").exists()


def test_many_images_are_said_and_made(sample, caplog, monkeypatch):
    monkeypatch.setattr(xy_grid, "MANY", 3)
    for module in ("sample", "sample_options"):
        monkeypatch.setattr(f"booth.commands.{module}.MANY", 3)
    sample("--prompt", "a", "--x", "guidance=2,3", "--y", "seed=0,1")
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "--x and --y ask for 4 images"
    ]
    images = sample("--prompt", "a", "--seeds", 0, 1, 2, 3, out="many")
    assert "grid.png" not in images and len(images) == 4, "too many to look at in one picture"


def test_values_vary_and_nothing_else():
    across, down = read_axes(["guidance=1,2.5"], ["solver=ddim,euler"])
    grid = varied(RECIPE, across, down)
    assert [(recipe.guidance, recipe.solver) for recipe in grid] == [
        (1, "ddim"),
        (2.5, "ddim"),
        (1, "euler"),
        (2.5, "euler"),
    ]
    assert {(recipe.prompt, recipe.seed, recipe.steps) for recipe in grid} == {("a photo of sks dog", 42, 25)}
    assert across.labels == ["guidance 1", "guidance 2.5"] and down.labels == ["solver ddim", "solver euler"]
    with pytest.raises(UserError, match="must be NAME=VALUE"):
        read_axes(["=1"], [])


def test_labels_stand_at_their_images():
    colours = [np.array(colour, np.uint8) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 0, 250))]
    images = [np.broadcast_to(colour, (64, 64, 3)).copy() for colour in colours]

    def drawn(across, down):
        return np.asarray(pictures.xy_grid(images, across, down)).astype(int)

    picture = drawn(["one", ""], ["", "two"])
    places = [np.argwhere((picture == colour).all(axis=-1)) for colour in colours]
    (top, left), (_, right), (low, _), last = (place.min(axis=0) for place in places)
    assert top < low and left < right and tuple(last) == (low, right)
    assert all(len(place) == 192**2 for place in places), "enlarged by a whole number"
    ink = 255 - picture.min(axis=-1)
    assert ink[:top, left:right].sum() > 1000 and ink[:top, right:].sum() == 0, "above its column"
    assert ink[low:, :left].sum() > 1000 and ink[top:low, :left].sum() == 0, "beside its row"
    assert np.argwhere((drawn(["a", "b", "c", "d"], [""]) == colours[0]).all(axis=-1)).min() < 30, (
        "no margin for nothing"
    )

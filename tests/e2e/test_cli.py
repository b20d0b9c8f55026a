"""One command line for both backends: what it makes, and what it says to what cannot work."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from waiting import PATIENCE_S

from booth.config.fields import FIELDS

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, job):
    """A run of four steps, made by the command; the process' outcome and the folder."""
    folder = tmp_path_factory.mktemp("finished")
    command = [sys.executable, "-m", "torchbooth.train", *job("run")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S)
    return done, folder / "run"


@pytest.fixture
def run_dir(finished):
    return finished[1]


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def refusal(outcome, package="torchbooth"):
    """The error's text, after checking that it is all there is."""
    assert outcome.code == 2, outcome
    lines = outcome.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"{package}: error: ") and outcome.out == "", outcome
    return lines[0].removeprefix(f"{package}: error: ")


def test_train(finished, tiny_pipeline):
    done, run_dir = finished
    assert done.returncode == 0 and done.stdout == "", done.stderr
    assert "pipeline written to run/pipeline" in done.stderr and "Traceback" not in done.stderr
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    assert [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").open()] == [1, 2, 3, 4]
    source, trained = load_file(tiny_pipeline / UNET), load_file(run_dir / "pipeline" / UNET)
    assert source.keys() == trained.keys() and not np.array_equal(source["conv_in.bias"], trained["conv_in.bias"])


def test_other_steps_must_be_meant(run_dir, job, main):
    """Given as an override they are; else --accept-changes says so."""
    arguments = [text for text in job(run_dir) if "train.steps" not in text]
    said = refusal(main("torchbooth", "train", *arguments))
    assert said.endswith("--config.NAME=VALUE or for all of them with --accept-changes")
    assert "train.steps was 4, is 20" in said


def test_the_same_command_again_has_nothing_to_do(run_dir, job, main):
    before = files(run_dir)
    outcome = main("torchbooth", "train", *job(run_dir))
    assert outcome.code == 0 and "already at step 4 of 4: nothing left to do\n" in outcome.err
    changed = {path.name for path, time in files(run_dir).items() if before.get(path) != time}
    assert changed <= {"run", "config.json", ".lock"}


def test_sample_from_a_pipeline_folder(run_dir, run, tmp_path):
    done = run("torchbooth", "sample", f"--model={run_dir}/pipeline/", "--prompt", "a photo of sks robot",
               "--prompt", "", "--negative-prompt", "blurry", "--seeds", 0, 2**63 - 1, "--size", "96x64", "--steps", 2,
               "--out", "new/pictures")  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = [path.name for path in sorted((tmp_path / "new" / "pictures").iterdir())]
    assert names == ["000-a-photo-of-sks-robot-seed0.png", f"001-a-photo-of-sks-robot-seed{2**63 - 1}.png",
                     "002-seed0.png", f"003-seed{2**63 - 1}.png", "grid.png"]  # fmt: skip
    images = [Image.open(tmp_path / "new" / "pictures" / name) for name in names]
    assert all(image.size == (96, 64) for image in images[:4])
    assert images[4].size[0] > 2 * 192 and images[4].size[1] > 2 * 128
    assert len({image.tobytes() for image in images}) == 5 and all(np.asarray(image).std() > 5 for image in images)


def test_sample_from_a_checkpoint(run_dir, main, tmp_path):
    def images(name, *arguments):
        done = main("torchbooth", "sample", "--prompt", "a photo of robot", "--seeds", 1, "--steps", 2, "--size", "64",
                    "--batch-size", 2, "--out", tmp_path / name, *arguments)  # fmt: skip
        assert done.code == 0, done.err
        return Image.open(tmp_path / name / "000-a-photo-of-robot-seed1.png").tobytes()

    newest, fourth = images("newest", "--run", run_dir), images("4", "--run", run_dir, "--step", 4)
    assert newest == fourth == images("pipeline", "--model", run_dir / "pipeline")
    assert images("2", "--run", run_dir, "--step", 2) != fourth


def test_checkpoints_side_by_side(run_dir, main, tmp_path):
    given = ("--run", run_dir, "--prompt", "a robot", "--seeds", 1, "--steps", 2, "--size", 64)
    done = main("torchbooth", "sample", *given, "--x", "checkpoint=4,2", "--out", tmp_path / "xy")
    assert done.code == 0 and (tmp_path / "xy" / "xy.png").is_file(), done.err
    for place, step in enumerate((4, 2)):
        assert main("torchbooth", "sample", *given, "--step", step, "--out", tmp_path / str(step)).code == 0
        alone, beside = (tmp_path / folder / f"{number}-a-robot-seed1.png" for folder, number in
                         ((str(step), "000"), ("xy", f"00{place}")))  # fmt: skip
        assert alone.read_bytes() == beside.read_bytes(), "the text in it too"


def test_evaluate(run_dir, main, tmp_path, measuring_networks, tiny_pipeline):
    """Its pictures are those that `sample` makes of the base and of each checkpoint."""
    run, settings = shutil.copytree(run_dir, tmp_path / "run"), tmp_path / "settings.txt"
    settings.write_text("a {} in the snow\n")
    given = ("--run", run, "--settings", settings, "--instance-images", 1, "--class-images", 2, "--batch-size", 1)
    done = main("torchbooth", "evaluate", *given, "--dino", measuring_networks / "dino")
    assert done.code == 0 and done.out.startswith("| step | dino | pres | like_base | diversity |"), done.err
    pictures = run / "evaluation" / "pictures"
    assert sorted(path.name[:-13] for path in pictures.iterdir()) == ["base", "step-000002", "step-000004"]
    for name, *source in (
        ("base", "--model", tiny_pipeline), ("step-000002", "--run", run, "--step", 2),
        ("step-000004", "--model", run / "pipeline"),
    ):  # fmt: skip
        sampled = main("torchbooth", "sample", *source, "--prompt", "a sks robot in the snow", "--seeds", 1001,
                       "--size", 64, "--steps", 4, "--batch-size", 1, "--out", tmp_path / name)  # fmt: skip
        assert sampled.code == 0, sampled.err
        (folder,) = pictures.glob(f"{name}-*")
        (expected,) = (tmp_path / name).glob("000-*.png")
        assert np.array_equal(np.asarray(Image.open(folder / "001.png")), np.asarray(Image.open(expected))), name


def test_a_cut_checkpoint(run_dir, main, tmp_path):
    copy = shutil.copytree(run_dir, tmp_path / "run")
    file = copy / "checkpoints" / "step-000004" / "trainable.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    outcome = main("torchbooth", "export", "--run", copy, "--out", tmp_path / "out")
    assert outcome.code == 2 and f"error: checkpoint {file.parent} is damaged (" in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err and not (tmp_path / "out").exists()


def test_export_a_checkpoint(run_dir, main, tmp_path):
    done = main(
        "torchbooth", "export", "--run", run_dir, "--step", 2, "--precision", "fp16", "--out", tmp_path / "half"
    )
    assert done.code == 0 and done.err.endswith(f"pipeline of step 2 written to {tmp_path}/half\n"), done.err
    half, whole = load_file(tmp_path / "half" / UNET), load_file(run_dir / "pipeline" / UNET)
    assert half.keys() == whole.keys() and all(array.dtype == np.float16 for array in half.values())
    record = json.loads((tmp_path / "half" / "export.json").read_text())
    assert (record["step"], record["precision"], record["trained"]) == (2, "fp16", ["unet"])
    assert main("torchbooth", "export", "--run", run_dir, "--out", tmp_path / "newest").code == 0
    newest = load_file(tmp_path / "newest" / UNET)
    assert all(np.array_equal(newest[name], whole[name]) for name in whole)
    assert any(not np.array_equal(newest[name].astype(np.float16), half[name]) for name in whole)


def test_a_run_without_lora(run_dir, main, tmp_path):
    outcome = main("torchbooth", "export", "--run", run_dir, "--format", "kohya", "--out", tmp_path / "x.safetensors")
    assert refusal(outcome) == f"--run {run_dir} trained no LoRA (adapter.kind=none); leave --format out"


def test_dry_run(job, main, tmp_path):
    arguments = [*job(tmp_path / "run", train__learning_rate="3e-6"), "--dry-run"]
    outcome = main("torchbooth", "train", *arguments)
    assert outcome.code == 0
    config = json.loads(outcome.out)
    assert config["train"]["learning_rate"] == 3e-6 and config["prior"]["count"] == 2, "overridden"
    assert config["instance"]["prompt"] == "a photo of sks robot" and config["train"]["seed"] == 0, (
        "of file and default"
    )
    assert not list(tmp_path.iterdir())
    without_workdir = [word for word in arguments if word not in ("--workdir", str(tmp_path / "run"))]
    assert main("torchbooth", "train", *without_workdir).out == outcome.out
    bad = main("torchbooth", "train", *job(tmp_path / "run", data__resolution=60), "--dry-run")
    assert "data.resolution: image size 60x60 must be a multiple of 8" in refusal(bad)


def test_help_is_short_and_fields_lists_the_settings(run, main):
    done = run("torchbooth.train", "--help")
    assert done.returncode == 0 and done.stderr == "" and len(done.stdout.splitlines()) < 70
    assert "`torchbooth fields` lists them" in " ".join(done.stdout.split())
    assert run("torchbooth", "--help").returncode == 0
    said = main("torchbooth", "fields").out
    for field in FIELDS:
        assert f"{field.name} " in said and field.meaning in said
    found = main("jaxbooth", "fields", "Flip").out.splitlines()
    assert any(line.startswith("data.flip ") for line in found) and len(found) < 10
    assert refusal(main("torchbooth", "fields", "flop")).startswith("no setting has 'flop' in its name or meaning; ")


def test_a_refusal_in_a_process_of_its_own(run, job, tmp_path):
    done = run("torchbooth.train", *job("run", train__step=3))
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "run").exists()
    assert done.stderr == "torchbooth: error: config field 'train.step' does not exist; did you mean 'train.steps'?\n"


@pytest.mark.parametrize("package", ["torchbooth", "jaxbooth"])
@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("instance.images", "EMPTY", "holds no images; put 3 to 12 photos there"),
     ("instance.images", "/nowhere", "instance.images='/nowhere' is not a folder"),
     ("model.source", "/nowhere", "model.source=/nowhere: no such folder"),
     ("train.steps", "many", "train.steps='many' must be of type int"),
     ("train.learning_rate", "-1", "train.learning_rate=-1.0 must be greater than 0, or 'auto'"),
     ("train.learning_rate", "0", "or 'auto'; to leave the UNet as it is set train.unet=false"),
     ("train.steps", "0", "train.steps=0 must be at least 1, or 'auto'"),
     ("adapter.rank", "4", "adapter.rank=4 has no effect: adapter.kind must be 'lora', and is 'none'; set that too"),
     ("train.text_encoder_lr", "1e-6", "does not exist; did you mean 'train.text_encoder_learning_rate'?"),
     ("model.source", "https://example.org/a", "must be a local folder, or a hub id owner/name"),
     ("model.source", "https://huggingface.co/datasets/a/b", "is the page of a dataset; give a model"),
     ("train.learning_rate", "nan", "train.learning_rate=nan must be a finite number"),
     ("train.optimizer", "sgd", "train.optimizer='sgd' must be one of 'adamw', 'prodigy', 'adamw8bit'"),
     ("prior.prompt", "", "prior.weight=1.0 needs prior.prompt"),
     ("data.resolution", "100", "data.resolution: image size 100x100 must be a multiple of 8")],
)  # fmt: skip
def test_values_that_cannot_work(main, job, tmp_path, package, field, value, said):
    (tmp_path / "empty").mkdir()
    value = value.replace("EMPTY", str(tmp_path / "empty"))
    assert said in refusal(main(package, "train", *job(tmp_path / "run", **{field: value})), package)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which is not refused")
def test_float16_needs_a_gpu(main, job, tiny_pipeline, tmp_path):
    said = refusal(main("torchbooth", "train", *job(tmp_path / "run", train__precision="fp16")))
    assert "train.precision='fp16' needs a GPU: on a CPU float16 is slower and less exact than float32" in said
    assert not (tmp_path / "run").exists()
    sample = ["--model", tiny_pipeline, "--prompt", "a", "--precision", "fp16", "--out", tmp_path / "out"]
    assert "--precision 'fp16' needs a GPU" in refusal(main("torchbooth", "sample", *sample))
    said = refusal(main("jaxbooth", "sample", *sample), "jaxbooth")
    assert "--precision 'fp16' must be one of 'fp32', 'bf16' with jaxbooth: only torchbooth has it" in said


def test_one_device(main, job, tmp_path):
    said = refusal(main("torchbooth", "train", *job(tmp_path / "run", mesh__fsdp=2)))
    assert "mesh.fsdp=2 must divide the number of processes, 1: start them with torchrun" in said


def test_an_unreadable_photo(main, job, photos, tmp_path):
    folder = shutil.copytree(photos, tmp_path / "photos")
    (folder / "robot-9.jpg").write_bytes(b"not a jpeg")
    said = refusal(main("torchbooth", "train", *job(tmp_path / "run", instance__images=folder)))
    assert "1 of 6 images cannot be read: robot-9.jpg (" in said and "the other 5 are fine" in said


@pytest.fixture
def broken(tiny_pipeline, tmp_path):
    return shutil.copytree(tiny_pipeline, tmp_path / "model")


def test_another_family(main, job, broken, tmp_path):
    index = json.loads((broken / "model_index.json").read_text())
    (broken / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionXLPipeline"}))
    for arguments in (["train", *job(tmp_path / "run", model__source=broken)],
                      ["sample", "--model", broken, "--prompt", "a", "--out", tmp_path / "out"]):  # fmt: skip
        assert "StableDiffusionXLPipeline is not supported yet; supported: " in refusal(main("torchbooth", *arguments))
    assert not (tmp_path / "out").exists()


def test_flax_weights_only(main, job, broken, tmp_path):
    (broken / UNET).rename(broken / "unet" / "diffusion_flax_model.msgpack")
    said = refusal(main("torchbooth", "train", *job(tmp_path / "run", model__source=broken)))
    assert "only Flax weights (.msgpack)" in said


def test_the_workdir_of_another_run(main, job, run_dir):
    before = files(run_dir)
    said = refusal(main("torchbooth", "train", *job(run_dir, train__seed=5)))
    assert "belongs to another run: train.seed was 0, is 5" in said
    assert "is a run of torchbooth" in refusal(main("jaxbooth", "train", *job(run_dir)), "jaxbooth")
    outcome = main("jaxbooth", "sample", "--run", run_dir, "--prompt", "a", "--out", "x")
    assert "was trained with torchbooth; use that command" in refusal(outcome, "jaxbooth")
    assert files(run_dir) == before


def test_a_workdir_that_cannot_be_written(main, job, tmp_path):
    (tmp_path / "file").touch()
    assert refusal(main("torchbooth", "train", *job(tmp_path / "file"))).endswith("file is a file; give a folder")
    said = refusal(main("torchbooth", "train", *job(tmp_path / "file" / "run")))
    assert "Not a directory" in said and said.endswith("; fix this and run the same command again")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "arguments are required: train|sample|evaluate|export|merge|push|report|doctor|plan|convert|fields|"
      "completion; torchbooth --help"),
     (["teach"], "invalid choice: 'teach'"),
     (["train"], "neither photos nor a config; give photos/ --subject 'sks dog' --model ID, or --config FILE"),
     (["train", "--config", "SMOKE"], "--workdir is missing; give a folder for the run"),
     (["train", "--config", "/"], "--config / is not a file"),
     (["train", "--config", "SMOKE", "--workdir", "w", "--steps", "3"], "unrecognized arguments: --steps"),
     (["train", "--config", "SMOKE", "--workdir", "w", "--config.train.steps", "3"],
      "--config.train.steps must be written --config.train.steps=VALUE"),
     (["train", "--config", "SMOKE", "--workdir", "w", "--from-step", "two"], "invalid int value: 'two'"),
     (["sample", "--prompt", "a", "--out", "o"], "one of the arguments --model --run is required"),
     (["sample", "--model", "m", "--run", "r", "--prompt", "a", "--out", "o"], "not allowed with argument --model"),
     (["sample", "--model", "m", "--out", "o"], "arguments are required: --prompt"),
     (["sample", "--model", "m", "--prompt", "a", "--out", "o", "--config.train.steps=3"], "belongs to train"),
     (["sample", "--model", "/nowhere", "--prompt", "a", "--out", "o"], "/nowhere: no such folder"),
     (["sample", "--run", "/nowhere", "--prompt", "a", "--out", "o"], "/nowhere is not a run folder"),
     (["export", "--run", "/nowhere", "--out", "o"], "/nowhere is not a run folder"),
     (["export", "--run", "RUN", "--out", "o", "--step", "3"], "step 3 has no checkpoint in "),
     (["export", "--run", "RUN", "--out", "o", "--precision", "fp8"], "invalid choice: 'fp8'"),
     (["export", "--run", "RUN", "--out", "RUN"], "it holds other files (no export.json)"),
     (["export", "--out", "o"], "one of the arguments --run --from is required"),
     (["export", "--from", "/nowhere", "--out", "o"], "/nowhere: no such folder"),
     (["export", "--from", "RUN", "--out", "o"], "is a run folder; give it with --run, or its "),
     (["export", "--from", "TINY", "--out", "o", "--step", "3"], "--step names a checkpoint of --run; with --from"),
     (["export", "--run", "RUN", "--out", "o", "--model-config", "x"], "--model-config belongs to --from"),
     (["export", "--run", "RUN", "--out", "o", "--title", "x"], "are only for files for WebUIs"),
     (["export", "--from", "TINY", "--out", "o", "--format", "onnx"], "invalid choice: 'onnx'"),
     (["export", "--from", "TINY", "--out", "o.safetensors"], "give --format single-file, kohya or peft, or a folder"),
     (["export", "--from", "TINY", "--out", "o.ckpt", "--format", "single-file"], "must end with .safetensors"),
     (["sample", "--model", "none.safetensors", "--prompt", "a", "--out", "o"], "none.safetensors: no such file"),
     (["sample", "--model", "TINY", "--model-config", "x", "--prompt", "a", "--out", "o"], "is for single files")],
)  # fmt: skip
def test_commands_that_cannot_work(main, run_dir, tiny_pipeline, arguments, said, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"SMOKE": request.config.rootpath / "configs" / "smoke.py", "RUN": run_dir, "TINY": tiny_pipeline}
    assert said in refusal(main("torchbooth", *(places.get(word, word) for word in arguments)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("--size", "big", "--size 'big' must be a number such as 512, or WIDTHxHEIGHT such as 768x512"),
     ("--size", "60", "image size 60x60 must be a multiple of 8"), ("--size", "0x64", "image size 0x64 must be"),
     ("--steps", "0", "inference steps 0 must be from 1 to 999"), ("--seeds", "-1", "--seeds -1 must be from 0 to"),
     ("--seeds", str(2**63), f"--seeds {2**63} must be from 0 to 2**63 - 1"), ("--seeds", str(2**80), "must be from 0"),
     ("--batch-size", "0", "--batch-size 0 must be at least 1"), ("--guidance", "nan", "--guidance nan must be a"),
     ("--guidance", "-1", "--guidance -1.0 must be"), ("--step", "3", "--step names a checkpoint of --run")],
)  # fmt: skip
def test_pictures_that_cannot_be_made(main, tiny_pipeline, option, value, said, tmp_path):
    arguments = ["--model", tiny_pipeline, "--prompt", "a", "--out", tmp_path / "out", f"{option}={value}"]
    assert said in refusal(main("torchbooth", "sample", *arguments))
    assert not (tmp_path / "out").exists()


def test_pictures_into_a_file(main, tiny_pipeline, tmp_path):
    (tmp_path / "out").touch()
    outcome = main("torchbooth", "sample", "--model", tiny_pipeline, "--prompt", "a", "--out", tmp_path / "out")
    assert "File exists" in refusal(outcome)


def test_the_exit_code_of_an_interrupted_command(main, job, tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("booth.train.loop.train", interrupted)
    outcome = main("torchbooth", "train", *job(tmp_path / "run"))
    assert outcome.code == 130
    assert (
        outcome.err.strip() == "torchbooth: interrupted; the same command continues, training from its last checkpoint"
    )

"""A disk that is full: said with the bytes needed and free, nothing made is lost, and with room the run goes on."""

import shutil
import subprocess

import pytest

from booth.common.disk_space import Need, free, readable, require
from booth.common.errors import UserError
from booth.config.loading import load_config
from booth.config.values import default_config, resolved
from booth.data import pictures
from booth.models import export_folder, export_single_file
from booth.models.open import open_pipeline
from booth.train import checkpoints, latent_cache
from booth.train.checkpoints import Checkpoints
from booth.train.metrics import Recorder, read_metrics
from booth.train.run_folder import RunDir


@pytest.fixture
def disk(tmp_path):
    """A disk of 300 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can make a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a failing test may hold files open


@pytest.fixture
def fill(disk):
    """Fills the disk up to so many bytes; `fill.undo` frees it."""

    def fill(leave):
        with (disk / "filler").open("wb") as filler:
            while (there := free(disk)) > leave:
                filler.write(bytes(min(1 << 20, there - leave)))
                filler.flush()

    fill.undo = lambda: (disk / "filler").unlink()
    return fill


@pytest.fixture
def full_at(monkeypatch, fill):
    """Fills the disk just before the n-th call of a function."""

    def full_at(owner, name, number, leave=8192):
        original, calls = getattr(owner, name), []

        def function(*arguments, **options):
            calls.append(name)
            if len(calls) == number:
                fill(leave)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, function)

    return full_at


def refused(outcome, *texts):
    """One line that has the texts, after what the run said before."""
    assert outcome.code == 2, outcome.err
    last = outcome.err.splitlines()[-1]
    assert "booth: error: " in last and "Traceback" not in outcome.err, outcome.err
    for text in ("are needed", "are free", *texts):
        assert text in last, last


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def half_made(folder):
    return [path.name for path in folder.rglob(".*") if path.name != ".lock"]


def test_space_is_looked_at_before_work_begins(disk, fill, job, main):
    fill(20_000_000)
    outcome = main("torchbooth", "train", *job(disk / "run"))
    refused(outcome, "the pipeline", "2 checkpoints", "lower checkpoint.keep")
    assert not (disk / "run" / "class_images").exists()
    fill.undo()
    assert main("torchbooth", "train", *job(disk / "run")).code == 0


@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
@pytest.mark.parametrize("known", [True, False])
def test_while_saving(disk, fill, full_at, job, main, monkeypatch, package, known):
    """Found before anything is written; or, if the size was not foreseen, by the library that writes."""
    if not known:
        monkeypatch.setattr("booth.train.loop.checkpoint_size", lambda *_: 0)
    full_at(Checkpoints, "save", 2, leave=1_000_000)
    outcome = main(package, "train", *job(disk / "run"))
    refused(outcome, "checkpoint of step 4", "earlier checkpoints are untouched")
    folder = disk / "run" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step-000002"]
    before = content(folder)
    fill.undo()
    assert main(package, "train", *job(disk / "run")).code == 0
    assert {path: data for path, data in content(folder).items() if path.parts[0] == "step-000002"} == before
    assert not half_made(disk / "run")


@pytest.mark.parametrize(
    ("owner", "name", "number", "said"),
    [(pictures, "write_bytes", 2, "class_images/class-00001.png"), (latent_cache, "write_bytes", 3, "/cache/"),
     (pictures, "write_bytes", 3, "samples/step-000004.png"), (export_folder, "_write_pipeline", 1, "export to"),],
)  # fmt: skip
def test_while_writing_anything_else(disk, fill, full_at, job, main, owner, name, number, said):
    arguments = [*job(disk / "run"), "--config.samples.every_steps=4", "--config.samples.inference_steps=2"]
    full_at(owner, name, number, leave=0)
    refused(main("torchbooth", "train", *arguments), said)
    assert not half_made(disk / "run")
    fill.undo()
    again = main("torchbooth", "train", *arguments)
    assert again.code == 0, again.err
    assert not half_made(disk / "run")


def test_while_logging(disk, fill, caplog):
    """metrics.jsonl ends the run; tensorboard alone, which only repeats it, does not."""
    metrics = {"loss": 1.0, "grad_norm": 1.0, "skipped": 0.0}
    with RunDir.open(disk / "run", "numpy", default_config()) as run:
        with (
            Recorder(run, 0, 99, 4, 50) as recorder,
            pytest.raises(UserError, match=r"metrics\.jsonl .*are needed and"),
        ):
            for step in range(1, 99):
                recorder.record(step, {"unet": 1e-4}, metrics)
                if step == 1:
                    fill(0)
        fill.undo()
        with Recorder(run, 1, 99, 4, 50) as recorder:
            fill(16_000)  # enough for one of them
            for step in range(2, 99):
                recorder.record(step, {"unet": 1e-4}, metrics)
        assert [line["step"] for line in read_metrics(run.metrics)][:50] == list(range(1, 51))
    assert [text for text in caplog.messages if "tensorboard" in text] == [
        "nothing more is written for tensorboard ([Errno 28] No space left on device); metrics.jsonl has everything"
    ]


def test_while_sampling_and_exporting_by_command(disk, fill, full_at, job, main, tmp_path, monkeypatch):
    assert main("torchbooth", "train", *job(tmp_path / "run")).code == 0
    arguments = ["sample", "--run", tmp_path / "run", "--prompt", "a robot", "--steps", 2, "--out", disk / "pictures"]
    with monkeypatch.context():
        full_at(pictures, "write_bytes", 1, leave=0)
        refused(main("torchbooth", *arguments), "pictures/000-a-robot-seed0.png")
    fill.undo()
    fill(5_000_000)
    refused(main("torchbooth", "export", "--run", tmp_path / "run", "--out", disk / "pipeline"), "the pipeline")
    assert not (disk / "pipeline").exists() and not half_made(disk)


def test_while_writing_a_single_file(disk, fill, full_at, main, tiny_sd2_pipeline):
    arguments = ["export", "--from", tiny_sd2_pipeline, "--format", "single-file", "--out", disk / "dog.safetensors"]
    fill(5_000_000)
    refused(main("jaxbooth", *arguments), "the checkpoint")
    fill.undo()
    full_at(export_single_file, "_write_weights", 1, leave=0)
    refused(main("jaxbooth", *arguments), "export to")
    assert [path.name for path in disk.iterdir()] == ["filler"]
    fill.undo()
    assert main("jaxbooth", *arguments).code == 0
    assert sorted(path.name for path in disk.iterdir()) == ["dog.safetensors", "dog.yaml"]


SIZES = {
    "torchbooth": ("torchbooth", {}),
    "jaxbooth": ("jaxbooth", {}),
    **{name: ("torchbooth", {"train__optimizer": name}) for name in ("adamw8bit", "lion8bit", "adafactor")},
    "LoRA": ("torchbooth", {"adapter__kind": "lora"}),
    "LoRA in 8 bits": ("torchbooth", {"adapter__kind": "lora", "train__optimizer": "adamw8bit"}),
    "text encoder, rounded weights": (
        "torchbooth", {"train__text_encoder": True, "train__precision": "bf16", "memory__weights": "bf16"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.full] * (n == "jaxbooth")) for n in SIZES])
def test_the_size_of_a_checkpoint_is_foreseen(job, main, tmp_path, name):
    package, fields = SIZES[name]
    arguments = job(tmp_path / "run", train__steps=1, prior__weight=0, **fields)
    outcome = main(package, "train", *arguments)
    assert outcome.code == 0, outcome.err
    overrides = [tuple(text.removeprefix("--config.").split("=", 1)) for text in arguments if "config." in text]
    config = resolved(load_config(arguments[1], overrides))
    foreseen = checkpoints.checkpoint_size(config, open_pipeline(config.model.source))
    size = sum(path.stat().st_size for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file())
    assert 0.7 * foreseen < size < 1.01 * foreseen, "names and Orbax's compression make the difference"


def test_needs_are_added_up_disk_by_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, 5 * 10**6))
    fits = [Need("pictures", tmp_path / "a" / "b", 2 * 10**6), Need("weights", tmp_path, 3 * 10**6)]
    require(fits, "")
    said = r"^5\.1 MB are needed in \S+ \(pictures 2\.0 MB, weights 3\.1 MB\), and 5\.0 MB are free; make room$"
    with pytest.raises(ValueError, match=said):
        require([fits[0], Need("weights", tmp_path, 31 * 10**5)], "make room")


def test_readable():
    assert [readable(size) for size in (300, 17_300_000, 4_265_146_304)] == ["0.3 KB", "17.3 MB", "4.27 GB"]

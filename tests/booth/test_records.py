"""What a run was begun with and how far it got is known from its record, and not from what is missing or was edited."""

import json
import shutil

import numpy as np
import pytest
from fake_backend import TRAINED, FakeBackend, watched
from PIL import Image
from safetensors.numpy import load_file

from booth.commands.cli import main
from booth.common.errors import UserError
from booth.config.loading import load_config
from booth.report.data import gather
from booth.train import loop
from booth.train.metrics import read_metrics
from booth.train.run_folder import RunDir
from booth.train.run_record import read_record
from booth.train.trained_run import find_trained

UNET = "unet/diffusion_pytorch_model.safetensors"


class Lora(FakeBackend):
    """Has an adapter that does nothing, so that a run ends with a LoRA file."""

    def tensors(self, state):
        from booth.models.adapters import adapter_of
        from booth.models.open import open_pipeline

        adapter = adapter_of(self.config, open_pipeline(self.config.model.source))
        for name, shape in adapter.tensor_shapes().items():
            component, _, rest = name.partition(".")
            yield component, rest, np.full(shape, state.models.bias[0], np.float32)


@pytest.fixture
def config(tiny_config):
    tiny_config.train.steps, tiny_config.train.learning_rate = 8, 0.05
    tiny_config.checkpoint.every_steps = 4
    return tiny_config


@pytest.fixture(params=["none", "lora"])
def kind(request, config):
    """(config, backend, folder of the export) of full fine-tuning, and of LoRA."""
    config.adapter.kind = request.param
    if request.param == "lora":
        config.adapter.targets = "cross_attention"
    return config, Lora if request.param == "lora" else FakeBackend, {"none": "pipeline", "lora": "lora"}[request.param]


def contents(folder):
    """Of all files but the lock; of a file itself."""
    return {path.relative_to(folder): path.read_bytes() for path in (folder, *folder.rglob("*"))
            if path.is_file() and path.name != ".lock"}  # fmt: skip


def refusal(config, workdir, backend=FakeBackend, **options):
    """The line; nothing in the folder has changed."""
    before = contents(workdir)
    with pytest.raises(UserError) as caught:
        loop.train(backend, config, workdir, **options)
    assert contents(workdir) == before and "\n" not in str(caught.value)
    return str(caught.value)


def older(run):
    """The run folder as the version before wrote it."""
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["run"], manifest["config"]
    (run / "manifest.json").write_text(json.dumps(manifest))


def edited(run, **fields):
    """What `--config RUN/config.json` gives once that file was edited."""
    record = json.loads((run / "config.json").read_text())
    record["config"] |= {name.replace("__", "."): value for name, value in fields.items()}
    (run / "config.json").write_text(json.dumps(record))
    return load_config(run / "config.json")


# A finished model is never overwritten by a shorter one.


@pytest.mark.parametrize("before", ["this version", "the version before"])
def test_a_finished_run_without_checkpoints(kind, tmp_path, before, caplog):
    """There is nothing left to do where the export is what is asked for; else it cannot go on, and never anew."""
    config, backend, exported = kind
    run = loop.train(backend, config, tmp_path / "run")
    if before == "the version before":
        older(run.path)
    shutil.rmtree(run.path / "checkpoints")
    files = contents(run.path / exported)
    with caplog.at_level("INFO", "booth"):
        again = loop.train(backend, config, run.path)
    assert "already at step 8 of 8: nothing left to do" in caplog.messages
    assert contents(run.path / exported) == files and len(again.metrics) == 8
    for steps in (2, 12):
        config.train.steps = steps
        said = refusal(config, run.path, backend)
        assert "was saved at step 8, but that checkpoint is not in" in said and "(there is none)" in said
        assert said.endswith("put it back, or give another --workdir to start again")
    config.train.steps, config.export.precision = 8, "fp16"
    assert "was saved at step 8" in refusal(config, run.path, backend), "another precision needs the checkpoint"


def test_an_unfinished_run_without_checkpoints(config, tmp_path):
    """Its records alone say how far it was."""
    with pytest.raises(KeyboardInterrupt):
        loop.train(watched(("train_step", 7)), config, tmp_path / "run")
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")][-1] >= 4
    shutil.move(tmp_path / "run" / "checkpoints", tmp_path / "kept")
    assert "was saved at step 4" in refusal(config, tmp_path / "run")
    shutil.move(tmp_path / "kept", tmp_path / "run" / "checkpoints")  # as it says
    assert len(loop.train(FakeBackend, config, tmp_path / "run").metrics) == 8


def test_the_newest_checkpoint_alone_is_gone(config, tmp_path, caplog):
    """To go on from an older one is a deliberate act, and then what is finished may be replaced, which is said."""
    run = loop.train(FakeBackend, config, tmp_path / "run")
    before = load_file(run.pipeline / UNET)[TRAINED]
    shutil.rmtree(run.path / "checkpoints" / "step-000008")
    config.train.steps = 6
    said = refusal(config, run.path)
    assert (
        "the newest there is of step 4); put it back, continue from step 4 with --from-step 4, or give another" in said
    )
    assert find_trained(FakeBackend, str(run.path), None, "fp32").step == 4
    assert "step 8 was saved too, but its checkpoint is not in" in caplog.text
    again = loop.train(FakeBackend, config, run.path, from_step=4)
    assert "pipeline is of step 8; at the end, that of step 6 replaces it" in caplog.text
    assert [line["step"] for line in again.metrics] == [1, 2, 3, 4, 5, 6]
    assert not np.array_equal(load_file(run.pipeline / UNET)[TRAINED], before)
    loop.train(FakeBackend, config, run.path)  # goes on as any other


def test_what_was_not_saved_is_trained_again(config, tmp_path):
    """Metrics that reach further than the checkpoints are not a loss: a killed run begins where it was saved, or anew.

    Also one that went back deliberately and was killed before it saved anything.
    """
    config.checkpoint.every_steps = 0
    with pytest.raises(KeyboardInterrupt):
        loop.train(watched(("train_step", 8)), config, tmp_path / "run")
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")
    config.checkpoint.every_steps = 4
    assert len(loop.train(FakeBackend, config, tmp_path / "run").metrics) == 8
    with pytest.raises(KeyboardInterrupt):
        loop.train(watched(("train_step", 2)), config, tmp_path / "run", from_step=4)
    assert len(loop.train(FakeBackend, config, tmp_path / "run").metrics) == 8


def test_killed_between_a_checkpoint_and_its_note(config, tmp_path, monkeypatch):
    def killed(run, step):
        if step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDir, "record_saved", killed)
        loop.train(FakeBackend, config, tmp_path / "run")
    backend = watched()
    assert len(loop.train(backend, config, tmp_path / "run").metrics) == 8
    assert backend.calls.count("train_step") == 4


@pytest.mark.parametrize("lost", ["pipeline/unet", "pipeline/model_index.json", "lora/pytorch_lora_weights.safetensors",
                                  "lora", "pipeline", "tokens"])  # fmt: skip
def test_half_an_export_is_no_export(config, tmp_path, lost):
    """It is written again from the checkpoint; without that it is not called finished."""
    backend = FakeBackend
    if lost.startswith("lora"):
        config.adapter.kind, config.adapter.targets, backend = "lora", "cross_attention", Lora
    if lost == "tokens":
        config.tokens.add, config.instance.prompt = ("<rob>=robot",), "a photo of <rob> robot"
        backend = with_tokens()
    run = loop.train(backend, config, tmp_path / "run")
    whole = contents(run.path)
    path = run.path / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    loop.train(backend, config, run.path)
    assert contents(path) == {name.relative_to(lost): text for name, text in whole.items() if name.is_relative_to(lost)}
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(run.path / "checkpoints")
    assert "was saved at step 8" in refusal(config, run.path, backend)


def with_tokens():
    from booth.models.new_tokens import ROWS

    class Tokens(FakeBackend):
        def tensors(self, state):
            yield from super().tensors(state)
            yield "text_encoder", ROWS, np.ones((1, 64), np.float32)

    return Tokens


def test_a_pipeline_of_someone_elses_is_seen_before_training(config, tmp_path):
    (tmp_path / "run").mkdir()
    loop.train(FakeBackend, config, tmp_path / "run")
    (tmp_path / "run" / "pipeline" / "export.json").unlink()
    config.train.steps = 12
    backend = watched()
    assert "it holds other files (no export.json)" in refusal(config, tmp_path / "run", backend)
    assert not backend.calls


def test_an_export_does_not_take_the_place_of_a_longer_ones(config, tmp_path, monkeypatch, capsys):
    """By the command; nobody means a run's own pipeline by --out."""
    run = loop.train(FakeBackend, config, tmp_path / "run")
    monkeypatch.setattr("booth.commands.export.load_backend", lambda package: FakeBackend)
    before = contents(run.pipeline)
    export = ["export", "--run", str(run.path), "--out", str(run.pipeline), "--step"]
    assert main("torchbooth", [*export, "4"]) == 2
    assert "holds an export of step 8, and this is step 4; choose another folder" in capsys.readouterr().err
    assert contents(run.pipeline) == before
    assert main("torchbooth", [*export, "8"]) == 0


def test_a_run_without_its_metrics_is_not_unfinished(config, tmp_path):
    run = loop.train(FakeBackend, config, tmp_path / "run")
    run.path.joinpath("metrics.jsonl").unlink()
    assert gather(run.path).step == 8 and "Resume" not in gather(run.path).commands
    assert loop.train(FakeBackend, config, run.path).pipeline.is_dir()


# A record is not checked against itself.


@pytest.mark.parametrize(
    ("field", "old", "new"),
    [("adapter.rank", 16, 4), ("adapter.kind", "lora", "none"), ("adapter.targets", "attention", "feed_forward"),
     ("ema.decay", 0.0, 0.9), ("train.optimizer", "adamw", "prodigy"), ("train.text_encoder", False, True),
     ("instance.prompt", "a photo of sks robot", "a photo of zwx robot"), ("train.seed", 0, 7),
     ("prior.weight", 1.0, 0.5)],
)  # fmt: skip
@pytest.mark.parametrize("accept", [True, False])
def test_an_edited_record_is_what_an_override_is(config, tmp_path, field, old, new, accept):
    config.adapter.kind, config.adapter.targets = "lora", "attention"
    run = loop.train(Lora, config, tmp_path / "run")
    more = {"train.learning_rate": 1.0} if new == "prodigy" else {}
    again = edited(run.path, **{field: new, "train.steps": 12}, **more)
    said = refusal(again, run.path, Lora, meant=None if accept else [])
    # Without adapters their targets count for nothing, and are the default.
    idle = "; adapter.targets was 'attention', is 'feed_forward'" if new == "none" else ""
    assert said == (
        f"--workdir {run.path} belongs to another run: {field} was {old!r}, is {new!r}{idle};"
        " restore these values, or choose another --workdir"
    )


def test_edited_steps_must_be_meant(config, tmp_path):
    run = loop.train(FakeBackend, config, tmp_path / "run")
    again = edited(run.path, train__steps=9, log__every_steps=3)
    said = refusal(again, run.path, meant=[])
    assert "began with other values: train.steps was 8, is 9; put them back, or say that" in said
    assert len(loop.train(FakeBackend, again, run.path, meant=None).metrics) == 9
    assert read_record(run.path).config["train.steps"] == 9
    assert len(loop.train(FakeBackend, load_config(run.path / "config.json"), run.path, meant=[]).metrics) == 9


@pytest.mark.parametrize("content", ["edited", "no JSON", "gone"])
def test_what_was_edited_but_not_given_does_not_count(config, tmp_path, content, caplog):
    """Neither for training nor for what else reads a run; it is brought back, which is said with the values."""
    run = loop.train(FakeBackend, config, tmp_path / "run")
    path = run.path / "config.json"
    before = path.read_bytes()
    if content == "edited":
        edited(run.path, adapter__kind="lora", train__seed=3, train__steps=800)
    else:
        path.unlink() if content == "gone" else path.write_text("{")
    assert find_trained(FakeBackend, str(run.path), None, "fp32").config.adapter.kind == "none"
    assert gather(run.path).config.train.steps == 8
    loop.train(FakeBackend, config, run.path, meant=[])
    assert path.read_bytes() == before
    said = "is restored, since values edited there were not given to this command: "
    assert any(f"{said}train.steps=8, not 800, train.seed=0, not 3, adapter.kind='none', not 'lora'" in message
               for message in caplog.messages) == (content == "edited")  # fmt: skip


@pytest.mark.parametrize("moved", ["model", "photos"])
def test_where_things_are_may_be_said_in_the_config(config, tmp_path, tiny_pipeline, photos, moved):
    """They are known by their content; so for commands that take no config."""
    config.model.source = str(shutil.copytree(tiny_pipeline, tmp_path / "model"))
    config.instance.images = str(shutil.copytree(photos, tmp_path / "photos"))
    run = loop.train(FakeBackend, config, tmp_path / "run")
    (tmp_path / moved).rename(tmp_path / "moved")
    again = edited(run.path, **{"model": {"model.source": str(tmp_path / "moved")},
                                "photos": {"instance.images": str(tmp_path / "moved")}}[moved])  # fmt: skip
    assert find_trained(FakeBackend, str(run.path), None, "fp32").step == 8
    assert gather(run.path).albums[0].folder.is_dir()
    again.train.steps = 9
    assert len(loop.train(FakeBackend, again, run.path).metrics) == 9


def test_a_run_of_the_version_before_goes_on(config, tmp_path):
    """Its config.json is its record, until it goes on: from then on it is not any more."""
    run = loop.train(FakeBackend, config, tmp_path / "run")
    older(run.path)
    assert gather(run.path).step == 8 and find_trained(FakeBackend, str(run.path), None, "fp32").step == 8
    config.train.steps = 9
    assert len(loop.train(FakeBackend, config, run.path).metrics) == 9
    assert read_record(run.path).saved == 9
    assert "train.seed was 0, is 7" in refusal(edited(run.path, train__seed=7), run.path)


def test_a_manifest_that_is_gone(config, tmp_path):
    """What the run was made from is not known then; that it is the same must be said."""
    run = loop.train(FakeBackend, config, tmp_path / "run")
    (run.path / "manifest.json").unlink()
    config.train.steps = 9
    assert "has no manifest.json any more, which says what the run was made from" in refusal(
        config, run.path, meant=["train.steps"]
    )
    with pytest.raises(UserError, match=r"has no manifest\.json, which says what it was trained from; put it back"):
        find_trained(FakeBackend, str(run.path), None, "fp32")
    assert gather(run.path).step == 8
    # Nothing else would have noticed.
    assert len(loop.train(FakeBackend, config, run.path, meant=None).metrics) == 9


def test_the_config_of_a_run_copied_into_another_folder_is_no_run(config, tmp_path):
    """It would have the other's id, and so its checkpoints to write to and to delete from."""
    config.checkpoint.dir = str(tmp_path / "elsewhere")
    first = loop.train(FakeBackend, config, tmp_path / "first")
    (tmp_path / "second").mkdir()
    shutil.copy(first.path / "config.json", tmp_path / "second")
    copied = load_config(tmp_path / "second" / "config.json")
    with pytest.raises(UserError, match="holds checkpoints of another run; give an empty folder"):
        loop.train(FakeBackend, copied, tmp_path / "second")
    assert sorted(path.name for path in (tmp_path / "elsewhere").glob("step*")) == ["step-000004", "step-000008"]
    shutil.rmtree(tmp_path / "second")
    (tmp_path / "second").mkdir()
    shutil.copy(first.path / "config.json", tmp_path / "second")
    copied.checkpoint.dir = str(tmp_path / "of the second")
    assert len(loop.train(FakeBackend, copied, tmp_path / "second").metrics) == 8
    assert read_record(first.path).run_id != read_record(tmp_path / "second").run_id


# A place is not an identity.


@pytest.mark.parametrize("marked", [True, False])
def test_checkpoints_may_move(config, tmp_path, marked, caplog):
    """From the run folder to a disk, and on; known by the run's id, in its mark or in the checkpoints themselves."""
    config.train.steps = 4
    run = loop.train(FakeBackend, config, tmp_path / "run")
    for steps, place, old in ((5, "disk", run.path / "checkpoints"), (6, "other", tmp_path / "disk")):
        shutil.move(old, tmp_path / place)
        if not marked:
            (tmp_path / place / ".run-id").unlink(missing_ok=True)
        config.checkpoint.dir, config.train.steps = str(tmp_path / place), steps
        backend = watched()
        loop.train(backend, config, run.path, meant=["train.steps"])
        assert backend.calls.count("train_step") == 1
        assert f"resuming with checkpoint.dir='{tmp_path / place}'" in caplog.text
    shutil.move(tmp_path / "other", run.path / "checkpoints")
    config.checkpoint.dir = ""
    assert len(loop.train(FakeBackend, config, run.path).metrics) == 6


def test_a_place_without_the_checkpoints_is_refused(config, tmp_path):
    run = loop.train(FakeBackend, config, tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    config.train.steps = 12
    for place in ("empty", "other"):
        config.checkpoint.dir = str(tmp_path / place)
        assert "does not hold this run's checkpoints; put them there" in refusal(config, run.path)
    assert not (tmp_path / "empty").exists()
    shutil.copytree(run.path / "checkpoints" / "step-000004", tmp_path / "half" / "step-000004")
    config.checkpoint.dir = str(tmp_path / "half")
    with pytest.raises(UserError, match=r"saved at step 8, .*\(the newest there is of step 4\).*--from-step 4"):
        loop.train(FakeBackend, config, run.path)


def test_class_images_may_move(config, tmp_path, photos):
    """From the run folder; their hashes are in its manifest."""
    run = loop.train(FakeBackend, config, tmp_path / "run")
    shutil.move(run.path / "class_images", tmp_path / "moved")
    config.prior.images, config.train.steps = str(tmp_path / "moved"), 9
    backend = watched()
    assert len(loop.train(backend, config, run.path, meant=["train.steps"]).metrics) == 9
    assert "sample" not in backend.calls
    Image.new("RGB", (64, 64)).save(tmp_path / "moved" / "class-00001.png")
    config.train.steps = 10
    with pytest.raises(UserError, match=r"class images changed since this run began \(class-00001\.png\)"):
        loop.train(FakeBackend, config, run.path)


@pytest.mark.parametrize("text", [None, "{"])
def test_class_images_whose_recipe_is_lost_are_known_by_their_hashes(config, tmp_path, text):
    run = loop.train(FakeBackend, config, tmp_path / "run")
    recipe = run.path / "class_images" / "class_images.json"
    before = recipe.read_bytes()
    recipe.unlink() if text is None else recipe.write_text(text)
    config.train.steps = 9
    backend = watched()
    loop.train(backend, config, run.path)
    assert recipe.read_bytes() == before and "sample" not in backend.calls
    recipe.unlink()
    Image.new("RGB", (64, 64)).save(recipe.with_name("class-00000.png"))
    config.train.steps = 10
    with pytest.raises(UserError, match=r"which says how they were made, is not there; put it back"):
        loop.train(FakeBackend, config, run.path)


def test_class_images_of_the_users_own_that_are_gone(config, tmp_path, photos):
    """They cannot be made again; others would silently take their places."""
    config.prior.images = str(tmp_path / "class")
    (tmp_path / "class").mkdir()
    shutil.copy(photos / "robot-0.png", tmp_path / "class" / "mine.png")
    run = loop.train(FakeBackend, config, tmp_path / "run")
    (tmp_path / "class" / "mine.png").rename(tmp_path / "mine.png")
    config.train.steps = 9
    backend = watched()
    with pytest.raises(
        UserError, match=r"lacks class images that this run has trained with \(mine\.png\); put them back"
    ):
        loop.train(backend, config, run.path)
    assert not backend.calls

"""The run folder: complete files only, one process at a time, one run for ever."""

import json
import os
import signal
import subprocess
import sys

import pytest

from booth.common.errors import UserError
from booth.common.files import publish, write_text
from booth.config.values import default_config
from booth.train.run_folder import RunDir
from booth.train.run_record import read_record

HOLD_LOCK = """
import sys
from booth.config.values import default_config
from booth.train.run_folder import RunDir

with RunDir.open(sys.argv[1], "jax", default_config()):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def config():
    return default_config()


def open_run(path, config, backend="jax"):
    """Opens and closes a run; returns its id."""
    with RunDir.open(path, backend, config) as run:
        return run.id


def open_meaning(path, config, meant):
    """As the command line opens a run, which says what is meant."""
    with RunDir.open(path, "jax", config, meant) as run:
        return run.id


def refusal(path, config, backend="jax"):
    with pytest.raises(UserError) as caught:
        open_run(path, config, backend)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def test_publish_makes_parents_and_renames_at_the_end(tmp_path):
    target = tmp_path / "a" / "b" / "file.txt"
    with publish(target) as staging:
        staging.write_text("new")
        assert staging.parent == target.parent and not target.exists()
    assert target.read_text() == "new" and names(target.parent) == ["file.txt"]


def test_publish_replaces_a_file_but_no_folder(tmp_path):
    write_text(tmp_path / "file", "old")
    write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    with pytest.raises(OSError), publish(tmp_path / "folder") as staging:
        staging.mkdir()
        (staging / "new").touch()
    assert names(tmp_path) == ["file", "folder"] and names(tmp_path / "folder") == ["old"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("folder", [True, False])
def test_publish_leaves_nothing_when_the_block_fails(tmp_path, error, folder):
    write_text(tmp_path / "file", "old")
    with pytest.raises(error), publish(tmp_path / ("folder" if folder else "file")) as staging:
        if folder:
            staging.mkdir()
        (staging / "half" if folder else staging).write_text("half")
        raise error
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "old"


def test_publish_begins_afresh_after_a_crash(tmp_path):
    (tmp_path / ".staging-folder").mkdir()
    (tmp_path / ".staging-folder" / "half").touch()
    with publish(tmp_path / "folder") as staging:
        assert not staging.exists()
        staging.mkdir()
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == []


def test_publish_syncs_before_it_renames(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(os.fstat(file).st_ino), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append("renamed"), replace(old, new)))
    with publish(tmp_path / "folder") as staging:
        staging.mkdir()
        (staging / "file").write_text("content")
    folder, file = tmp_path / "folder", tmp_path / "folder" / "file"
    assert done == [folder.stat().st_ino, file.stat().st_ino, "renamed", tmp_path.stat().st_ino]


def test_a_new_run_records_its_resolved_config(config, tmp_path):
    config.samples.prompts = ("a", "b")
    run_id = open_run(tmp_path / "new" / "run", config)
    record = read_record(tmp_path / "new" / "run")
    assert (record.backend, record.run_id) == ("jax", run_id)
    assert record.config["train.steps"] == 800 and record.config["samples.prompts"] == ["a", "b"]
    assert open_run(tmp_path / "new" / "run", config) == run_id
    assert open_run(tmp_path / "other", config) != run_id


def test_stale_staging_is_removed_at_open(config, tmp_path):
    config.checkpoint.dir = str(tmp_path / "elsewhere")
    open_run(tmp_path, config)
    for place in ("", "cache", "class_images", "samples", "elsewhere"):
        (tmp_path / place / ".staging-thing").mkdir(parents=True)
        (tmp_path / place / ".staging-thing" / "half").touch()
        (tmp_path / place / ".staging-file").touch()
        (tmp_path / place / "kept").touch()
    open_run(tmp_path, config)
    assert not list(tmp_path.rglob(".staging-*")) and len(list(tmp_path.rglob("kept"))) == 5


def test_another_process_is_refused_until_the_first_dies(config, tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"locked\n"
        assert "another process is using this run" in refusal(tmp_path / "run", config)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        open_run(tmp_path / "run", config)
    finally:
        holder.kill()
        holder.communicate()


def test_the_lock_holds_within_a_process_too(config, tmp_path):
    with RunDir.open(tmp_path, "jax", config):
        assert "another process is using this run" in refusal(tmp_path, config)
    open_run(tmp_path, config)


def test_a_run_killed_before_it_wrote_its_record_begins_again(config, tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".staging-config.json").write_text("{")
    open_run(tmp_path, config)


def test_what_desktops_leave_behind_is_nothing(config, tmp_path):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).touch()
    open_run(tmp_path, config)


def test_a_checkpoint_folder_serves_one_run(config, tmp_path):
    shared = tmp_path / "shared"
    config.checkpoint.dir = str(shared)
    open_run(tmp_path / "first", config)
    (shared / ".staging-step-000002").mkdir()  # the first run is writing it
    said = refusal(tmp_path / "second", config)
    assert said == f"checkpoint.dir={str(shared)!r} holds checkpoints of another run; give an empty folder"
    assert names(shared) == [".run-id", ".staging-step-000002"]
    config.checkpoint.dir = ""
    open_run(tmp_path / "second", config)  # the refusal left nothing that ties this folder to the other value
    config.checkpoint.dir = str(shared)
    open_run(tmp_path / "first", config)
    assert names(shared) == [".run-id"]


def test_a_checkpoint_folder_with_other_files_is_refused(config, tmp_path):
    for place in (".staging-thing", "step-000002", "mine"):
        config.checkpoint.dir = str(tmp_path / place / "folder")
        (tmp_path / place / "folder" / place).mkdir(parents=True)
        assert "holds other files than this run's checkpoints" in refusal(tmp_path / "run", config)
        assert names(tmp_path / place / "folder") == [place]


def test_a_checkpoint_folder_that_has_gone_does_not_begin_the_run_again(config, tmp_path):
    config.checkpoint.dir = str(tmp_path / "disk" / "checkpoints")
    open_run(tmp_path / "run", config)
    with RunDir.open(tmp_path / "run", "jax", config) as run:
        run.record_saved(2)
    (tmp_path / "disk").rename(tmp_path / "unplugged")
    assert "does not hold this run's checkpoints; put them there (is its disk mounted?)" in refusal(
        tmp_path / "run", config
    )
    assert not (tmp_path / "disk").exists()
    (tmp_path / "unplugged").rename(tmp_path / "disk")
    open_run(tmp_path / "run", config)


def test_a_folder_claimed_meanwhile_is_refused(config, tmp_path, monkeypatch):
    """Two runs found it empty at once."""
    config.checkpoint.dir = str(tmp_path / "shared")
    write = RunDir._write_record

    def beaten(run):
        write(run)
        write_text(tmp_path / "shared" / ".run-id", "the other")

    monkeypatch.setattr(RunDir, "_write_record", beaten)
    assert "holds checkpoints of another run" in refusal(tmp_path / "run", config)
    assert (tmp_path / "shared" / ".run-id").read_text() == "the other"


def test_another_runs_default_folder_can_be_claimed_but_not_shared(config, tmp_path):
    open_run(tmp_path / "first", config)
    config.checkpoint.dir = str(tmp_path / "first" / "checkpoints")
    open_run(tmp_path / "second", config)
    config.checkpoint.dir = ""
    assert "holds checkpoints of another run" in refusal(tmp_path / "first", config)


@pytest.mark.parametrize("content", [{"notes.txt": "mine"}, {".staging-notes": "mine"}, {".lock": "", "x.png": ""}])
def test_a_folder_with_other_files_is_refused(config, tmp_path, content):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    assert "holds other files and is no run folder" in refusal(tmp_path, config)
    assert names(tmp_path) == sorted(content)


@pytest.mark.parametrize("text", ['{"_class_name": "UNet2DConditionModel"}', "[]", "{", '{"backend": "jax"}',
                                  '{"backend": "jax", "run_id": "1", "config": 3}'])  # fmt: skip
def test_the_config_json_of_something_else(config, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert "is not a run folder: its config.json is of something else" in refusal(tmp_path, config)
    assert (tmp_path / "config.json").read_text() == text


def test_a_file_as_workdir(config, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert refusal(tmp_path / "file", config) == f"--workdir {tmp_path / 'file'} is a file; give a folder"
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_made(config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        open_run(tmp_path / "file" / "run", config)


def test_another_backend_is_refused(config, tmp_path):
    open_run(tmp_path, config)
    assert "is a run of jaxbooth; give torchbooth another one" in refusal(tmp_path, config, "torch")


def test_a_changed_field_is_refused_with_both_values(config, tmp_path):
    open_run(tmp_path, config)
    before = (tmp_path / "config.json").read_bytes()
    config.train.seed, config.data.flip, config.train.steps = 7, True, 900
    said = refusal(tmp_path, config)
    assert "belongs to another run: train.seed was 0, is 7; data.flip was False, is True; " in said
    assert "train.steps" not in said, "that one may change"
    assert (tmp_path / "config.json").read_bytes() == before


def test_fields_that_may_change_are_accepted_and_reported(config, tmp_path, caplog):
    run_id = open_run(tmp_path, config)
    open_run(tmp_path, config)
    assert not caplog.records
    config.train.steps, config.samples.prompts = 900, ("a photo",)
    with RunDir.open(tmp_path, "jax", config) as run:
        assert run.id == run_id and read_record(tmp_path).config["train.steps"] == 800
        run.record_changes()
    assert caplog.messages == ["resuming with train.steps=900 (was 800)",
                               "resuming with samples.prompts=['a photo'] (was [])"]  # fmt: skip
    assert read_record(tmp_path).config["train.steps"] == 900


def test_what_changes_the_run_must_be_meant(config, tmp_path):
    """As where a command was given without the steps that it once had."""
    open_run(tmp_path, config)
    config.train.steps, config.train.learning_rate, config.log.every_steps = 900, 1e-5, 3
    said = r"began with other values: train\.steps was 800, is 900; train\.learning_rate was 5e-06, is 1e-05; put them"
    with pytest.raises(UserError, match=said), RunDir.open(tmp_path, "jax", config, []):
        pass
    said = r"began with other values: train\.learning_rate was 5e-06, is 1e-05; put"
    with pytest.raises(UserError, match=said), RunDir.open(tmp_path, "jax", config, ["train.steps"]):
        pass
    assert read_record(tmp_path).config["train.steps"] == 800
    for meant in (None, ["train.steps", "train.learning_rate"]):
        with RunDir.open(tmp_path, "jax", config, meant):
            pass


def test_a_record_of_an_older_version(config, tmp_path):
    """A field that has gone since, and one that has come; its manifest has no settings."""
    open_run(tmp_path, config)
    (tmp_path / "manifest.json").write_text('{"versions": {}}')
    record = json.loads((tmp_path / "config.json").read_text())
    del record["config"]["adapter.kind"], record["config"]["tokens.fraction"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    with RunDir.open(tmp_path, "jax", config, []) as run:
        assert run.id == record["run_id"] and run.saved is None
    config.adapter.kind = "lora"
    assert "adapter.kind was 'none', is 'lora'" in refusal(tmp_path, config)
    config.adapter.kind = "none"
    record["config"]["train.old_field"] = 1
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert "train.old_field was 1, is None" in refusal(tmp_path, config)


INPUTS = {"instance images": {"1.png": "aa", "2.png": "bb"}, "model weights": {"unet": "cc"}}


@pytest.mark.parametrize(
    ("inputs", "said"),
    [({"instance images": {"1.png": "aa", "2.png": "XX"}}, r"instance images changed since this run began \(2\.png\)"),
     ({"instance images": {"1.png": "aa"}}, r"instance images changed since this run began \(2\.png\)"),
     ({"instance images": {"1.png": "aa", "3.png": "bb", "2.png": "bb"}}, r"\(3\.png\)"),
     ({"model weights": {"unet": "XX"}}, r"model weights changed since this run began \(unet\)")],
)  # fmt: skip
def test_changed_inputs_are_refused(config, tmp_path, inputs, said):
    with RunDir.open(tmp_path, "jax", config) as run:
        run.check_manifest(INPUTS)
    with RunDir.open(tmp_path, "jax", config) as run:
        run.check_manifest(INPUTS)
        before = (tmp_path / "manifest.json").read_bytes()
        with pytest.raises(UserError, match=said):
            run.check_manifest(INPUTS | inputs)
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_inputs_that_may_grow(config, tmp_path):
    with RunDir.open(tmp_path, "jax", config) as run:
        run.check_manifest(INPUTS)
        for names in ("ab", "a", "abc", "bc"):  # fewer, then more
            run.check_manifest({"class images": {name: name * 2 for name in names}}, may_grow=True)
        run.check_manifest(INPUTS)
        for changed in ({"a": "XX"}, {"c": "XX", "new": "YY"}):
            with pytest.raises(UserError, match=rf"class images changed since this run began \({min(changed)}\)"):
                run.check_manifest({"class images": changed}, may_grow=True)
    recorded = json.loads((tmp_path / "manifest.json").read_text())
    assert recorded["class images"] == {"a": "aa", "b": "bb", "c": "cc"}
    assert recorded["instance images"] == INPUTS["instance images"] and "versions" in recorded


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"instance images": 3}'])
def test_a_damaged_manifest_is_named(config, tmp_path, text):
    with RunDir.open(tmp_path, "jax", config) as run:
        run.check_manifest(INPUTS)
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=r"manifest\.json is damaged; put it back from a copy, or .* move it away"):
            run.check_manifest(INPUTS)
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "manifest.json").rename(tmp_path / "away.json")  # as the message says
    with pytest.raises(UserError, match=r"has no manifest\.json any more, .*give --accept-changes$"):
        open_meaning(tmp_path, config, [])
    assert not (tmp_path / "manifest.json").exists()
    with RunDir.open(tmp_path, "jax", config, None) as again:
        assert again.id == run.id and again.saved is None
        again.check_manifest(INPUTS)
        again.record_changes()
    with RunDir.open(tmp_path, "jax", config, []) as again:
        assert again.id == run.id


def test_the_manifest_has_the_versions(config, tmp_path):
    with RunDir.open(tmp_path, "jax", config) as run:
        run.check_manifest(INPUTS)
    assert json.loads((tmp_path / "manifest.json").read_text())["versions"].keys() >= {"python", "booth", "numpy"}


def test_no_run_has_no_record(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="is not a run folder: it has no config"):
            read_record(path)

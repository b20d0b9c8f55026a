"""Checkpoints: written whole, rotated only when the next one is complete, never another run's."""

import errno
import importlib
import json
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from booth.common.errors import UserError
from booth.config.values import default_config
from booth.train.checkpoints import Checkpoints


class Backend:
    """Saves text; fails with `error` after half of it, if there is one."""

    def __init__(self, error=None):
        self.error = error

    def save(self, state, folder):
        (folder / "state").write_text(state[:2])
        if self.error:
            raise self.error
        (folder / "state").write_text(state)

    def restore(self, state, folder):
        return (folder / "state").read_text()


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", "this run")


def save(checkpoints, *steps, keep=10, error=None):
    for step in steps:
        checkpoints.save(Backend(error), f"state {step}", step, keep)


def names(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_none_at_first(checkpoints):
    assert checkpoints.steps() == [] and checkpoints.find() is None
    with pytest.raises(UserError, match=r"step 7 has no checkpoint in .*; there are: none"):
        checkpoints.find(7)


def test_save_find_restore(checkpoints):
    save(checkpoints, 2, 1000000, 40)
    assert checkpoints.steps() == [2, 40, 1000000]
    assert checkpoints.find() == 1000000 and checkpoints.find(40) == 40
    assert checkpoints.restore(Backend(), None, 40) == "state 40"
    with pytest.raises(UserError, match=r"step 3 has no checkpoint in .*; there are: 2, 40, 1000000"):
        checkpoints.find(3)


def test_the_newest_are_kept(checkpoints):
    save(checkpoints, 1, 2, 3, 4, keep=2)
    assert names(checkpoints) == ["step-000003", "step-000004"]
    save(checkpoints, 5, keep=1)
    assert names(checkpoints) == ["step-000005"]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: File too large"),
     ValueError("OUT_OF_RANGE: Error writing\n[os_error_code='28']")],
)  # fmt: skip
def test_a_checkpoint_that_cannot_be_written_costs_no_other(checkpoints, error):
    save(checkpoints, 1, 2, keep=2)
    with pytest.raises(UserError) as caught:
        save(checkpoints, 3, keep=1, error=error)
    said = str(caught.value)
    assert f"the checkpoint of step 3 cannot be written to {checkpoints.folder} (" in said and "\n" not in said
    assert "make room there" in said and "checkpoint.dir" not in said, "a run keeps its folder"
    assert names(checkpoints) == ["step-000001", "step-000002"]
    assert checkpoints.find() == 2 and checkpoints.restore(Backend(), None, 2) == "state 2"


def test_a_killed_or_broken_backend_is_not_taken_for_a_full_disk(checkpoints):
    save(checkpoints, 1, keep=1)
    for error in (KeyboardInterrupt, RuntimeError, AssertionError):
        with pytest.raises(error):
            save(checkpoints, 2, keep=1, error=error())
        assert names(checkpoints) == ["step-000001"]


def test_the_old_goes_only_when_the_new_is_there(checkpoints):
    save(checkpoints, 1, keep=1)

    class Looking(Backend):
        def save(self, state, folder):
            assert names(checkpoints) == [folder.name, "step-000001"]
            super().save(state, folder)

    checkpoints.save(Looking(), "state 2", 2, keep=1)
    assert names(checkpoints) == ["step-000002"]


def test_half_a_deleted_checkpoint_has_no_checkpoints_name(checkpoints, monkeypatch):
    """Killed while the old checkpoint is being deleted."""
    save(checkpoints, 1)

    def killed(path):
        if path.exists():
            (path / "state").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr("booth.train.checkpoints.remove", killed)
    with pytest.raises(KeyboardInterrupt):
        save(checkpoints, 2, keep=1)
    assert checkpoints.steps() == [2] and checkpoints.restore(Backend(), None, 2) == "state 2"
    monkeypatch.undo()
    (checkpoints.folder / ".staging-deleted-000002").mkdir()  # another one, left by the same kind of crash
    save(checkpoints, 3, keep=1)
    assert "step-000003" in names(checkpoints) and ".staging-deleted-000002" not in names(checkpoints)


def test_other_things_in_the_folder_are_no_checkpoints(checkpoints):
    save(checkpoints, 5)
    for name in ("step-12", "step-000012.bak", "superseded-000012", ".staging-step-000012", "my-step-000012"):
        (checkpoints.folder / name).mkdir()
    assert checkpoints.steps() == [5]
    save(checkpoints, 6, keep=1)
    assert len(names(checkpoints)) == 6, "what is no checkpoint is not rotated away either"


@pytest.mark.parametrize(
    "error", [SafetensorError("header too\nsmall"), ValueError("DATA_LOSS"), FileNotFoundError("none"), Exception("x"),
              RecursionError("deep")]
)  # fmt: skip
@pytest.mark.parametrize("hashed", [True, False])
def test_a_checkpoint_that_cannot_be_restored_is_named(checkpoints, error, hashed):
    """Where its files are known to be what was saved it is not called damaged; no advice to delete it in any case."""

    class Broken(Backend):
        def restore(self, state, folder):
            raise error

    save(checkpoints, 1)
    if not hashed:  # as older versions saved, and in a bucket
        record = checkpoints.path(1) / "checkpoint.json"
        record.write_text(json.dumps({**json.loads(record.read_text()), "sha256": {}}))
    with pytest.raises(UserError) as caught:
        checkpoints.restore(Broken(), None, 1)
    said, is_it = str(caught.value), "is whole, but" if hashed else "cannot be read: it is damaged, or"
    assert said.startswith(f"checkpoint {checkpoints.path(1)} {is_it} was saved with other settings, another model or")
    assert said.endswith("; continue with those") and "\n" not in said


def test_a_damaged_checkpoint_is_named(checkpoints):
    save(checkpoints, 1, 2)
    for step in (1, 2):
        (checkpoints.path(step) / "state").write_text("cut")
    with pytest.raises(UserError) as caught:
        checkpoints.restore(Backend(), None, 2)
    assert str(caught.value) == (
        f"checkpoint {checkpoints.path(2)} is damaged (state: not what was saved); put it back from a copy, or continue"
        " from an older one with --from-step 1"
    )
    with pytest.raises(UserError, match=r"put it back from a copy, or start again in another --workdir$"):
        checkpoints.restore(Backend(), None, 1)


@pytest.mark.parametrize("error", [MemoryError, RuntimeError, AssertionError, KeyboardInterrupt])
def test_a_full_device_is_not_taken_for_damage(checkpoints, error):
    class Full(Backend):
        def restore(self, state, folder):
            raise error

    save(checkpoints, 1)
    with pytest.raises(error):
        checkpoints.restore(Full(), None, 1)


def test_a_panic_is_one_line(checkpoints):
    """Libraries in Rust panic where memory cannot be had: that is no Exception, and no damage."""

    class Panicking(Backend):
        def restore(self, state, folder):
            raise type("PanicException", (BaseException,), {})("PyObject pointer is null")

    save(checkpoints, 1)
    with pytest.raises(UserError, match=r"step-000001 cannot be read \(PyObject pointer is null\); if there is memory"):
        checkpoints.restore(Panicking(), None, 1)


@pytest.mark.parametrize("text", [None, "", "[]", "{}"])
def test_a_checkpoint_without_its_record(checkpoints, text):
    save(checkpoints, 1, 2)
    record = checkpoints.path(2) / "checkpoint.json"
    record.unlink() if text is None else record.write_text(text)
    with pytest.raises(UserError, match=r"step-000002 is damaged .*--from-step 1"):
        checkpoints.find()
    assert checkpoints.find(1) == 1


def test_another_runs_checkpoints_are_refused(checkpoints):
    save(checkpoints, 1)
    other = Checkpoints(checkpoints.folder, "other run")
    for step in (None, 1):
        with pytest.raises(UserError, match=r"checkpoint\.dir='.*' holds checkpoints of another run"):
            other.find(step)


def test_newer_checkpoints_are_set_aside_not_deleted(checkpoints, caplog):
    save(checkpoints, 1, 2, 3)
    checkpoints.set_aside_after(1)
    assert names(checkpoints) == ["step-000001", "superseded-000002", "superseded-000003"]
    assert len(caplog.records) == 2 and "superseded-000002" in caplog.text
    save(checkpoints, 2)
    checkpoints.set_aside_after(1)
    assert names(checkpoints) == ["step-000001", "superseded-000002", "superseded-000002-2", "superseded-000003"]
    assert (checkpoints.folder / "superseded-000002" / "state").read_text() == "state 2"


@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
def test_a_flipped_bit_is_noticed(tiny_config, tmp_path, package):
    """In any file of a checkpoint; safetensors alone would not notice."""
    from booth.train import loop

    backend_class = importlib.import_module(f"{package}.backend").Backend
    tiny_config.train.steps, tiny_config.checkpoint.every_steps = 2, 1
    run = loop.train(backend_class, tiny_config, tmp_path / "run")
    tiny_config.train.steps = 3
    newest = run.path / "checkpoints" / "step-000002"
    file = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        UserError, match=r"step-000002 is damaged \(.*: not what was saved\); .* continue .* --from-step 1"
    ):
        loop.train(backend_class, tiny_config, run.path)
    assert len(loop.train(backend_class, tiny_config, run.path, from_step=1).metrics) == 3


def torch_state(size, names=("unet.weight",), optimizer="AdamW", average=False):
    import torch

    from torchbooth.ema import Average
    from torchbooth.step import State

    trainable = {name: torch.nn.Parameter(torch.arange(float(size))) for name in names}
    made = getattr(torch.optim, optimizer)(trainable.values())
    sum(parameter.sum() for parameter in trainable.values()).backward()
    made.step()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return State(None, trainable, made, scaler, None, None, Average(trainable, default_config()) if average else None)


def jax_state(size, names=("unet.weight",), optimizer="adam", average=False):
    import jax
    import jax.numpy as jnp
    import optax

    from jaxbooth.ema import Average
    from jaxbooth.step import State

    shared = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    trainable = {name: jax.device_put(jnp.arange(float(size)), shared) for name in names}
    more = {"average": Average(dict(trainable), jnp.float32(0))} if average else {}
    return State(None, trainable, getattr(optax, optimizer)(1e-3).init(trainable), **more)


@pytest.mark.parametrize("framework", ["torch", "jax"])
@pytest.mark.parametrize("other", [{"size": 4}, {"names": ["unet.other"]}, {"names": ["unet.weight", "unet.more"]},
                                   {"average": True}])  # fmt: skip
def test_a_good_checkpoint_of_other_settings_is_not_called_damaged(tmp_path, framework, other):
    """As a run of an older version has them whose config.json was edited."""
    module = importlib.import_module(f"{framework}booth.checkpoint")
    make = torch_state if framework == "torch" else jax_state
    backend = SimpleNamespace(save=module.save, restore=module.restore)
    checkpoints = Checkpoints(tmp_path / "checkpoints", "run")
    checkpoints.save(backend, make(8), 1, 1)
    with pytest.raises(
        UserError, match=r"is whole, but was saved with other settings.*; continue with those$"
    ) as caught:
        checkpoints.restore(backend, make(**{"size": 8, **other}), 1)
    assert "\n" not in str(caught.value)
    checkpoints.restore(backend, make(8), 1)

"""Whole runs: from photos to a pipeline, resumed, continued, repeated."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from booth.common.errors import UserError
from booth.train import loop
from booth.train.metrics import read_metrics

FIELDS = {"step", "loss", "instance_loss", "prior_loss", "learning_rate", "grad_norm", "samples_per_s"}


def weights(run):
    return load_file(run.pipeline / "unet" / "diffusion_pytorch_model.safetensors")


def losses(run):
    return [line["loss"] for line in run.metrics]


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_a_run_leaves_pipeline_metrics_and_pictures(package, tiny_config, tmp_path):
    import importlib

    tiny_config.samples.every_steps, tiny_config.samples.inference_steps = 4, 2
    run = importlib.import_module(f"{package}.train").train(tiny_config, tmp_path / "run")
    assert [line["step"] for line in run.metrics] == [1, 2, 3, 4]
    assert all(line.keys() >= FIELDS and np.isfinite(list(line.values())).all() for line in run.metrics)
    for line in run.metrics:
        assert line["loss"] == pytest.approx(line["instance_loss"] + line["prior_loss"], rel=1e-6)
    assert (run.path / "samples" / "step-000004.png").stat().st_size > 1000
    assert len(list((run.path / "class_images").glob("class-*.png"))) == 2
    assert list((run.path / "tensorboard").iterdir())
    source = load_file(tiny_config.model.source + "/unet/diffusion_pytorch_model.safetensors")
    trained = weights(run)
    assert trained.keys() == source.keys()
    assert all(not np.array_equal(trained[name], source[name]) for name in source), "every parameter moves"
    assert not list(run.path.rglob(".staging-*"))


@pytest.mark.parametrize("stop", [pytest.param(1, marks=pytest.mark.full), 3])  # in the middle of an epoch of five
def test_resumed_equals_uninterrupted_to_the_bit(backend_class, tiny_config, tmp_path, stop):
    tiny_config.data.crop, tiny_config.data.flip = "random", True
    whole = loop.train(backend_class, tiny_config, tmp_path / "whole")
    tiny_config.train.steps = stop
    loop.train(backend_class, tiny_config, tmp_path / "parts")
    tiny_config.train.steps = 4
    parts = loop.train(backend_class, tiny_config, tmp_path / "parts")
    assert losses(parts) == losses(whole)
    assert same(weights(parts), weights(whole))


def test_a_finished_run_trains_no_further_step(backend_class, tiny_config, tmp_path):
    first = loop.train(backend_class, tiny_config, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in first.path.rglob("*") if path.is_file()}
    again = loop.train(backend_class, tiny_config, tmp_path / "run")
    after = {path: path.stat().st_mtime_ns for path in first.path.rglob("*") if path.is_file()}
    assert again.metrics == first.metrics
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed <= {"config.json", ".lock"}


@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
def test_from_step_continues_from_an_older_checkpoint(backend_class, tiny_config, tmp_path):
    tiny_config.checkpoint.every_steps = 2
    first = loop.train(backend_class, tiny_config, tmp_path / "run")
    again = loop.train(backend_class, tiny_config, tmp_path / "run", from_step=2)
    assert same(weights(again), weights(first))
    assert [line["step"] for line in read_metrics(again.path / "metrics.jsonl")] == [1, 2, 3, 4]
    checkpoints = sorted(path.name for path in (again.path / "checkpoints").iterdir())
    assert checkpoints == ["step-000002", "step-000004", "superseded-000004"], "nothing made is lost"
    with pytest.raises(UserError, match=r"step 3 has no checkpoint.*there are: 2, 4"):
        loop.train(backend_class, tiny_config, tmp_path / "run", from_step=3)


@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
def test_a_changed_learning_rate_counts_on_resume(backend_class, tiny_config, tmp_path, caplog):
    tiny_config.train.steps = 2
    loop.train(backend_class, tiny_config, tmp_path / "run")
    tiny_config.train.steps, tiny_config.train.learning_rate = 4, 1e-3
    run = loop.train(backend_class, tiny_config, tmp_path / "run")
    assert [line["learning_rate"] for line in run.metrics] == pytest.approx([5e-6, 5e-6, 1e-3, 1e-3], rel=1e-6)
    record = json.loads((run.path / "config.json").read_text())
    assert record["config"]["train.learning_rate"] == 1e-3


@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
def test_existing_class_images_train_as_generated_ones(backend_class, tiny_config, tmp_path):
    """Making class images takes nothing from training's randomness; the old scripts' shared generator did."""
    made = loop.train(backend_class, tiny_config, tmp_path / "made")
    tiny_config.prior.images = str(made.path / "class_images")
    given = loop.train(backend_class, tiny_config, tmp_path / "given")
    assert losses(given) == losses(made)


@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
def test_without_prior(backend_class, tiny_config, tmp_path):
    tiny_config.prior.weight, tiny_config.prior.prompt = 0.0, ""
    run = loop.train(backend_class, tiny_config, tmp_path / "run")
    assert all(line["prior_loss"] == 0 and line["loss"] == line["instance_loss"] for line in run.metrics)
    assert not list((run.path / "class_images").iterdir()) if (run.path / "class_images").exists() else True


@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
def test_bf16(backend_class, tiny_config, tmp_path):
    reference = loop.train(backend_class, tiny_config, tmp_path / "plain")
    tiny_config.prior.images = str(reference.path / "class_images")
    tiny_config.train.precision = "bf16"
    bf16 = loop.train(backend_class, tiny_config, tmp_path / "bf16")
    assert losses(bf16) == pytest.approx(losses(reference), rel=2e-2)
    assert losses(bf16) != losses(reference), "bfloat16 must have been computed in"
    assert all(array.dtype == np.float32 for array in weights(bf16).values())


@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
def test_sampling_and_export_need_no_optimizer(backend_class, tiny_config, tmp_path):
    """A checkpoint's weights are read without Adam's moments, which are twice their size."""
    from booth.models.open import open_pipeline
    from booth.train.checkpoints import Checkpoints
    from booth.train.run_record import read_record

    run = loop.train(backend_class, tiny_config, tmp_path / "run")
    backend = backend_class(tiny_config)
    state = backend.init(backend.load(open_pipeline(tiny_config.model.source)), training=False)
    assert state.optimizer is None
    state = Checkpoints(run.path / "checkpoints", read_record(run.path).run_id).restore(backend, state, 4)
    assert same({name: array for _, name, array in backend.tensors(state)}, weights(run))

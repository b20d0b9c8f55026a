"""Plans of memory against what the profiler sees, and the choice of techniques."""

import json
import os
import subprocess
import sys

import pytest
import torch
from check_plan import COMBINATIONS, compare, counts

from booth.common.errors import UserError
from booth.config.values import get, set_field
from booth.models.open import open_pipeline
from booth.train import loop
from torchbooth import fit as fitting
from torchbooth import memory_plan as planning
from torchbooth import plan as command
from torchbooth.backend import Backend
from torchbooth.fit import fit
from torchbooth.memory_plan import PHASES, TECHNIQUES, plan


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline):
    return open_pipeline(str(tiny_pipeline), "", "")


MEASURED = [name for name, fields in COMBINATIONS.items() if counts(fields)]


@pytest.mark.parametrize("name", [
    *MEASURED[:2], *(pytest.param(name, marks=pytest.mark.full) for name in MEASURED[2:])
])  # fmt: skip
def test_the_plan_is_what_the_profiler_sees(pipeline, name):
    """Within 10 %; the profiler records the allocator of the CPU, the plan adds up fake tensors."""
    phases = compare(pipeline, 64, COMBINATIONS[name])
    assert len(phases) == 4
    for phase, (planned, used, _) in phases.items():
        assert planned == pytest.approx(used, rel=0.1), phase


def test_a_plan_takes_no_memory_and_no_randomness(pipeline, tiny_config):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    made = plan(Backend, tiny_config, pipeline)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(made.peak_gib) == [phase for phase in PHASES if phase != "previews"]
    assert made.needed_gib > max(made.peak_gib.values())


SAVING = (
    ("training", {"train.gradient_checkpointing": "block"}), ("training", {"train.optimizer": "adamw8bit"}),
    ("class images", {"prior.batch_size": 1}),
)  # fmt: skip
SAVING_TOO = (
    ("training", {"train.accumulation": 2}), ("training", {"memory.fused_backward": True}),
    ("training", {"train.precision": "bf16", "memory.weights": "bf16"}),
    ("training", {"memory.offload_optimizer": "always"}), ("previews", {"memory.offload_optimizer": "sampling"}),
    ("previews", {"memory.vae_tiling": True}),
)  # fmt: skip


@pytest.mark.parametrize(
    ("phase", "fields"), [*SAVING, *(pytest.param(*each, marks=pytest.mark.full) for each in SAVING_TOO)], ids=str
)
def test_it_saves_where_it_should(pipeline, tiny_config, phase, fields):
    tiny_config.samples.before_after = True
    few = phase == "training" and "memory.fused_backward" not in fields
    tiny_config.data.resolution = 128 if few else 64  # where activations count, and where they do not
    tiny_config.prior.batch_size = 32
    before = plan(Backend, tiny_config, pipeline, (phase,)).peak_gib[phase]
    for name, value in fields.items():
        set_field(tiny_config, name, value)
    assert plan(Backend, tiny_config, pipeline, (phase,)).peak_gib[phase] < 0.98 * before


@pytest.mark.full
def test_an_average_and_what_is_pulled_towards_count_as_weights_do(pipeline, tiny_config):
    def training(**fields):
        config = tiny_config.copy_and_resolve_references()
        for name, value in fields.items():
            set_field(config, name.replace("__", "."), value)
        return plan(Backend, config, pipeline, ("training",)).peak_gib["training"]

    weights = sum(spec.nbytes for specs in pipeline.weights["unet"].specs.values() for spec in specs.values())
    plain, one = training(), weights / planning.GIB
    assert training(ema__decay=0.9) - plain == pytest.approx(one, rel=0.02)
    assert training(ema__decay=0.9, train__pull=1.0) - plain == pytest.approx(2 * one, rel=0.02)
    assert training(ema__decay=0.9, ema__device="host") - plain == pytest.approx(0, abs=0.02 * one)


STATES = {"adamw": 8, "adamw8bit": 2, "lion": 4, "lion8bit": 1, "adafactor": 0}


@pytest.fixture
def rough(monkeypatch):
    """Plans by rule of thumb, in moments: 1 GiB for each byte of a weight and what belongs to it, 2 for activations."""
    asked = []

    def rough_plan(backend_class, config, pipeline, phases=PHASES):
        train, memory = config.train, config.memory
        weight = 2 if memory.weights == "bf16" else 4
        gradient = 0 if memory.fused_backward else weight
        states = STATES[train.optimizer]
        kept = {"none": 2.0, "block": 1.5 if train.checkpointed_blocks else 1.0}[train.gradient_checkpointing]
        away = memory.offload_optimizer
        pictures = 0.5 if memory.vae_tiling else 2.0
        peaks = {
            "encoding prompts": 1.0,
            "class images": weight + max(pictures, config.prior.batch_size),
            "encoding images": float(config.data.encode_batch_size),
            "training": weight + gradient + states * (away != "always") + kept,
            "previews": weight + states * (away == "none") + pictures,
        }
        asked.append((phases, {name: get(config, name) for name in TECHNIQUES}))
        return planning.Plan({phase: peaks[phase] for phase in peaks if phase in phases}, 0.0, {})

    monkeypatch.setattr(fitting, "plan", rough_plan)
    monkeypatch.setattr(fitting, "_trained_shapes", lambda *_: {"unet": [(2**30,)]})
    monkeypatch.setattr(fitting, "state_bytes", lambda optimizer, shape: STATES[optimizer] * shape[0])
    return rough_plan


def card(gib):
    """A size of a card with so much for tensors."""
    return f"{gib * planning.GAPS + planning.CONTEXT_GIB + 1e-6:.6f}GB"


def chosen(config, pipeline, gib, recorded=None):
    """What `fit` adds."""
    config = config.copy_and_resolve_references()
    config.memory.fit = card(gib)
    fitted = fit(Backend, config, pipeline, recorded)
    return {name: get(fitted, name) for name in TECHNIQUES if get(fitted, name) != get(config, name)}


BF16 = {"memory.weights": "bf16", "train.precision": "bf16"}
LARGEST = {"train.gradient_checkpointing": "block", "train.checkpointed_blocks": ("down_blocks.0", "up_blocks.1")}
LESS = {"data.encode_batch_size": 2}


@pytest.mark.parametrize(("gib", "techniques"), [
    (18, {}),  # 4 + 4 + 8 + 2
    (17.5, LARGEST),
    (17, {"train.optimizer": "adamw8bit"}),  # less costly than recomputing all
    (11.5, {"train.optimizer": "adamw8bit", **LARGEST}),
    (8, {"train.optimizer": "adamw8bit", "memory.fused_backward": True}),
    (6, {"train.optimizer": "adamw8bit", "memory.fused_backward": True, **BF16}),
    (5.5, {"train.optimizer": "adamw8bit", "memory.fused_backward": True, **BF16, **LARGEST,
           "memory.offload_optimizer": "sampling"}),
    (3.5, {"train.optimizer": "adamw8bit", "memory.fused_backward": True, **BF16, **LARGEST, **LESS,
           "memory.offload_optimizer": "always", "memory.vae_tiling": True, "prior.batch_size": 1}),
])  # fmt: skip
def test_no_more_than_needed_is_chosen(pipeline, tiny_config, rough, gib, techniques):
    tiny_config.samples.before_after = True
    assert chosen(tiny_config, pipeline, gib) == techniques


def test_the_batch_can_come_in_pieces(pipeline, tiny_config, rough):
    tiny_config.train.batch_size = 4
    _, *more = fitting._candidates(tiny_config, pipeline, ())
    assert {candidate.train.accumulation for candidate in more} == {1, 4}
    assert not any(candidate.memory.fused_backward and candidate.train.accumulation > 1 for candidate in more)


def test_float16_excludes_what_does_not_go_with_it(pipeline, tiny_config, rough):
    tiny_config.train.precision = "fp16"
    candidates = list(fitting._candidates(tiny_config, pipeline, ()))
    assert not any(candidate.memory.fused_backward for candidate in candidates)
    assert {candidate.train.precision for candidate in candidates} == {"fp16"}
    assert any(candidate.memory.offload_optimizer == "always" for candidate in candidates)


def test_what_cannot_fit_is_refused(pipeline, tiny_config, rough):
    with pytest.raises(
        UserError, match=r"^memory.fit='.*GB': an update needs 3.0 GiB with every technique, of 2.9 GiB"
    ):
        chosen(tiny_config, pipeline, 2.9)
    tiny_config.train.batch_size = 8
    tiny_config.data.encode_batch_size = 1
    monkey = rough

    def hungry(backend_class, config, pipeline, phases=PHASES):
        made = monkey(backend_class, config, pipeline, phases)
        if "class images" in made.peak_gib:
            made.peak_gib["class images"] += 10
        return made

    fitting.plan = hungry  # the fixture puts it back
    with pytest.raises(UserError, match=r"^memory.fit='.*': class images need 15.0 GiB with every technique, of 12.0"):
        chosen(tiny_config, pipeline, 12)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to ask")
def test_auto_without_a_gpu(pipeline, tiny_config):
    """A run goes on with what it has; a plan must know for what."""
    tiny_config.memory.fit = "auto"
    assert fit(Backend, tiny_config, pipeline) is tiny_config
    with pytest.raises(UserError, match=r"^memory.fit='auto' needs a GPU to ask; give a size such as '8GB'"):
        fitting.card_bytes("auto")


def test_auto_is_what_is_free(pipeline, tiny_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5 * 2**30, 8 * 2**30))
    assert fitting.card_bytes("auto") / 2**30 == pytest.approx(5.7)


def test_users_choices_stay(pipeline, tiny_config, rough):
    tiny_config.train.gradient_checkpointing, tiny_config.train.optimizer = "block", "lion"
    for gib in (12, 9, 7, 6, 4):
        techniques = chosen(tiny_config, pipeline, gib)
        assert "train.checkpointed_blocks" not in techniques and "train.gradient_checkpointing" not in techniques
        assert techniques.get("train.optimizer", "lion") in ("lion", "lion8bit")


def test_a_resumed_run_keeps_what_was_chosen(tiny_config, rough, tmp_path):
    """Also where another would be chosen now; with another `memory.fit` only what may change in a run does."""
    tiny_config.memory.fit, tiny_config.train.steps = card(8), 2
    first = loop.train(Backend, tiny_config, tmp_path / "run")
    recorded = json.loads((first.path / "config.json").read_text())["config"]
    assert recorded["memory.fit"] == card(8) and recorded["train.optimizer"] == "adamw8bit"
    assert recorded["memory.fused_backward"] and recorded["memory.weights"] == "fp32"
    tiny_config.train.steps = 4
    again = loop.train(Backend, tiny_config, tmp_path / "run")
    assert [line["step"] for line in again.metrics] == [1, 2, 3, 4]
    pipeline = open_pipeline(tiny_config.model.source, "", "")
    tiny_config.train.gradient_checkpointing = "block"  # as a line about memory told the user to
    config = tiny_config.copy_and_resolve_references()
    config.train.optimizer = "lion"
    config = fit(Backend, config, pipeline, recorded)
    assert (config.train.gradient_checkpointing, config.train.optimizer) == ("block", "adamw8bit")
    tiny_config.train.gradient_checkpointing = "none"
    roomy = chosen(tiny_config, pipeline, 30, recorded)
    assert roomy == {"train.optimizer": "adamw8bit", "memory.fused_backward": True}
    tight = chosen(tiny_config, pipeline, 7.1, recorded)
    assert tight == {**roomy, "train.gradient_checkpointing": "block", "memory.offload_optimizer": "sampling"}


@pytest.mark.parametrize(("phase", "broken"), [
    ("class images", "sample.denoise"), ("encoding images", "sample.encode"), ("training", "step.noisy_latents"),
])  # fmt: skip
def test_out_of_memory_is_one_line(tiny_config, tmp_path, monkeypatch, phase, broken):
    def fail(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of")

    monkeypatch.setattr(f"torchbooth.{broken}", fail)
    with pytest.raises(
        UserError, match=rf"^out of memory in {phase}, where 1.50 GiB more were asked for.*; .*memory.fit='auto'"
    ):
        loop.train(Backend, tiny_config, tmp_path / "run")


def test_the_hosts_memory_too(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr("torchbooth.step.noisy_latents", lambda batch: torch.empty(2**50))
    with pytest.raises(UserError, match=r"^out of memory in training, where \d+ bytes more were asked for"):
        loop.train(Backend, tiny_config, tmp_path / "run")
    monkeypatch.setattr("torchbooth.step.noisy_latents", lambda batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loop.train(Backend, tiny_config, tmp_path / "run")


def test_previews_without_memory_lose_no_update(tiny_config, tmp_path, monkeypatch):
    from torchbooth import sample

    tiny_config.samples.every_steps, tiny_config.samples.inference_steps = 3, 2
    decode, broken = sample.decode, []

    def fail(*arguments):
        if broken:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return decode(*arguments)

    monkeypatch.setattr(sample, "decode", fail)
    first = Backend.train_step
    monkeypatch.setattr(Backend, "train_step", lambda *arguments: (broken.append(1), first(*arguments))[1])
    with pytest.raises(UserError, match=r"^out of memory in previews, where 20.00 MiB more were asked for"):
        loop.train(Backend, tiny_config, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000003"]
    broken.clear()
    monkeypatch.setattr(Backend, "train_step", first)
    run = loop.train(Backend, tiny_config, tmp_path / "run")
    assert [line["step"] for line in run.metrics] == [1, 2, 3, 4]


@pytest.mark.full
def test_the_command(tiny_pipeline, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("train.precision: bf16\nsamples.before_after: true\ndata.resolution: 64\n", encoding="utf-8")
    command = [sys.executable, "-m", "torchbooth", "plan", "--config", config, f"--config.model.source={tiny_pipeline}",
               "--json", tmp_path / "plan.json"]  # fmt: skip
    done = subprocess.run(
        [*command, "--gpu", "6GB"], capture_output=True, text=True, env=os.environ | {"COLUMNS": "99"}
    )
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "plan.json").read_text())
    assert set(made["peak_gib"]) == set(PHASES) and made["gpu_gib"] == 6
    assert set(made["techniques"]) == set(TECHNIQUES) and made["techniques"]["train.optimizer"] == "adamw"
    assert "training" in done.stdout and "a card with" in done.stdout
    assert "fits as it is" in done.stderr


def test_a_run_with_bf16_weights_can_be_sampled_and_exported(tiny_config, tmp_path, monkeypatch, capfd):
    """In float32, which the commands compute in unless told otherwise; without what training needed."""
    from booth.commands import cli

    tiny_config.train.precision, tiny_config.memory.weights, tiny_config.memory.fused_backward = "bf16", "bf16", True
    tiny_config.train.optimizer, tiny_config.train.steps = "adamw8bit", 2
    loop.train(Backend, tiny_config, tmp_path / "run")
    where = ["--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    prompts = ["--prompt", "a robot", "--steps", "2"]
    assert cli.main("torchbooth", ["sample", *where, *prompts]) == 0
    assert (tmp_path / "out" / "grid.png").exists()
    assert cli.main("torchbooth", ["export", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "exported")]) == 0

    def fail(*arguments):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr("torchbooth.sample.denoise", fail)
    capfd.readouterr()
    assert cli.main("torchbooth", ["sample", *where, *prompts]) == 2
    assert "out of memory in previews; lower --batch-size or --size" in capfd.readouterr().err


@pytest.mark.parametrize("fields", [
    {"train.channels_last": True}, pytest.param({"train.compile": "default"}, marks=pytest.mark.full),
    pytest.param({"train.attention": "xformers"}, marks=pytest.mark.full),
], ids=str)  # fmt: skip
def test_what_fake_tensors_cannot_have_is_planned_without(pipeline, tiny_config, fields):
    before = plan(Backend, tiny_config, pipeline, ("training",)).peak_gib
    for name, value in fields.items():
        set_field(tiny_config, name, value)
    assert plan(Backend, tiny_config, pipeline, ("training",)).peak_gib == before


def test_what_cannot_be_planned_is_one_line(pipeline, tiny_config):
    with pytest.raises(UserError, match=r"^--gpu '8' must be a size such as 8GB"):
        command.run(tiny_config, pipeline, "8")
    tiny_config.mesh.fsdp = 2
    with pytest.raises(UserError, match=r"^mesh.fsdp=2 must be 1: a plan is for one process with all weights"):
        command.run(tiny_config, pipeline, None)

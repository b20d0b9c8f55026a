"""Plans: the real TPU compiler on a tiny model, where it is installed; and what does not need it."""

import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import pytest
from make_pipeline import make_configs

from booth.commands import cli
from booth.common.errors import UserError
from booth.config.trained import rate_groups
from booth.config.values import default_config
from booth.models.open import open_pipeline
from jaxbooth import chips, networks, plan_arguments, step
from jaxbooth import plan as planning
from jaxbooth.chips import devices_of
from jaxbooth.models.unet import UNet2DConditionModel
from jaxbooth.plan import Plan, largest, plan
from jaxbooth.sharding import make_mesh, mesh_of
from jaxbooth.weights import Network

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed (the tpu extra)"
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Configs alone, of a UNet with one level: four transformers, five resnets."""
    folder = make_configs("tiny", tmp_path_factory.mktemp("configs") / "tiny")
    file = folder / "unet" / "config.json"
    one_level = {
        "block_out_channels": [64],
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | one_level))
    return open_pipeline(folder, weights=False)


@pytest.fixture
def config():
    """256 pixels: 1024 tokens, from which on attention is not plain."""
    config = default_config()
    config.data.resolution = 256
    config.train.precision = "bf16"
    config.mesh.fsdp = 2
    return config


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "devices", "kernels"),
    [
        pytest.param("v3:2x2", 8, 0, marks=pytest.mark.full),
        pytest.param("v4:2x2x1", 4, 12, marks=pytest.mark.full),
        pytest.param("v5e:2x4", 8, 12, marks=pytest.mark.full),
        pytest.param("v6e:2x4", 8, 12, marks=pytest.mark.full),
    ],
)
def test_the_step_compiles_for_tpus(pipeline, config, topology, devices, kernels):
    config.ema.decay = 0.9
    made = plan(config, pipeline, topology, devices_of(topology), rows_per_device=2)
    assert made.fits and 0 < made.peak_gib < 1 < made.hbm_gib
    assert made.devices == devices
    # Splash attention where there is one: forward, and backward to queries and to keys, in four transformers.
    assert made.kernels == kernels and (made.kernel_flops_per_row > 0) == (kernels > 0)
    assert made.cycles_per_row >= made.compiler_cycles_per_row > 0
    needed = planning.needed_flops(config, pipeline)
    assert needed < made.flops_per_row, "attention is done again"
    assert made.flops_per_row - made.kernel_flops_per_row < 1.5 * needed, "and nothing else"
    assert {"all-gather"} < set(made.collectives) <= {"all-gather", "all-reduce", "reduce-scatter"}
    shapes = Network.build(UNet2DConditionModel, pipeline.component_config("unet")).shapes.values()
    assert made.collective_bytes > 0.9 * sum(math.prod(shape.shape) for shape in shapes), (
        "half of each weight, in bfloat16, is another device's"
    )
    parts = networks.build(pipeline, mesh_of(devices_of(topology), 2), config)
    others = sum(math.prod(s.shape) for name in ("vae", "text_encoder") for s in parts[name].shapes.values())
    average = sum(math.prod(shape.shape) for shape in shapes)
    assert made.resident_gib * planning.GIB == pytest.approx(4 * (others + average) / 2, rel=0.02), "a half on each"
    assert f"{devices} x TPU" in made.text() and "samples/s" in made.text()
    names = "topology devices rows_per_device peak_gib hbm_gib flops_per_row cycles_per_row collective_bytes"
    assert set(names.split()) <= made.as_dict().keys()


@needs_libtpu
@pytest.mark.full  # two compilations
def test_two_slices_send_little_to_each_other(pipeline, config):
    """Between slices only sums go, and of each a device sends its own share; inside a slice all is as in one."""
    one, two = (
        plan(config, pipeline, topology, devices_of(topology), rows_per_device=2)
        for topology in ("v5e:2x4", "2xv5e:2x4")
    )
    assert two.devices == 16 and two.fits
    inside = two.collective_bytes - two.collectives["between slices"]
    assert inside == pytest.approx(one.collective_bytes, rel=0.25)
    shapes = Network.build(UNet2DConditionModel, pipeline.component_config("unet")).shapes.values()
    whole = 4 * sum(math.prod(shape.shape) for shape in shapes)
    assert whole / 8 < two.collectives["between slices"] < 1.5 * whole / 8 + 2**20, "an eighth from each of eight"
    assert two.collective_s > one.collective_s, "that network is slower"
    assert mesh_of(devices_of("2xv5e:2x4"), 8, 2).devices.shape == (2, 1, 8)
    with pytest.raises(UserError, match=r"mesh\.fsdp=16 must divide the number of devices of a slice, 8"):
        mesh_of(devices_of("2xv5e:2x4"), 16, 2)


@needs_libtpu
@pytest.mark.full  # two compilations
def test_a_scanned_step_is_estimated_as_an_unrolled_one(pipeline, config, monkeypatch):
    config.train.accumulation = config.train.batch_size = 4
    devices = devices_of("v5e:2x4")
    scanned = plan(config, pipeline, "v5e:2x4", devices, rows_per_device=4)

    def unrolled(function, pieces):
        parts = [function({name: rows[i] for name, rows in pieces.items()}) for i in range(4)]
        return jax.tree.map(lambda *values: sum(values[1:], values[0]), *parts)

    monkeypatch.setattr(step, "_sum_over_pieces", unrolled)
    step.train_step.clear_cache()
    flat = plan(config, pipeline, "v5e:2x4", devices, rows_per_device=4)
    step.train_step.clear_cache()
    assert flat.cycles_per_row == pytest.approx(scanned.cycles_per_row, rel=0.05)
    assert flat.flops_per_row == scanned.flops_per_row


@pytest.mark.full
@needs_libtpu
def test_too_much_memory_is_a_plan(pipeline, config):
    config.train.precision = "fp32"
    config.train.attention = "plain"
    made = plan(config, pipeline, "v5e:2x4", devices_of("v5e:2x4"), rows_per_device=1024)
    assert not made.fits and made.peak_gib > made.hbm_gib
    assert made.text().endswith(made.advice)
    assert made.advice.startswith(f"needs {made.peak_gib:.1f} GiB of {made.hbm_gib:.1f}: try mesh.fsdp=8 or")
    assert "train.gradient_checkpointing=block" in made.advice and "train.precision=bf16" in made.advice


@needs_libtpu
def test_an_unknown_topology_is_one_line():
    with pytest.raises(UserError, match="topology 'v9:1x1' is not one that libtpu knows"):
        devices_of("v9:1x1")


def test_without_the_compiler_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"the TPU compiler is not installed; pip install libtpu"):
        devices_of("v3:2x2")


@pytest.mark.parametrize(
    ("said", "temporaries"),
    [
        (
            "the total memory required for HLO temporaries (73.17G) exceeds available HBM (15.75G). HLO module: jit",
            73.17,
        ),
        ("Ran out of memory in memory space hbm. Used 18.25G of 15.75G hbm. Exceeded hbm capacity by 2.5G.", 18.25),
    ],
)
def test_the_compilers_refusals_are_read(said, temporaries):
    assert planning._too_much(said) == (temporaries, 15.75)
    assert planning._too_much("some other failure") is None


def test_the_command(pipeline, tmp_path, monkeypatch, capsys):
    """With a compiler that allows 5 rows on each of 8 devices."""

    def compiled(config, pipeline, topology, devices, rows):
        return Plan(topology, "TPU v3", 8, rows, 1, rows <= 5, rows, 5.0, advice="" if rows <= 5 else "needs more")

    monkeypatch.setattr(planning, "plan", compiled)
    monkeypatch.setattr(planning, "devices_of", lambda topology: [None] * 8)
    config, figures = tmp_path / "config.json", tmp_path / "plan.json"
    config.write_text(json.dumps({"model": {"source": str(pipeline.path)}, "train": {"batch_size": 32}}))
    command = ["plan", "--config", str(config), "--json", str(figures)]
    assert cli.main("jaxbooth", command) == 2
    assert "--topology is missing and mesh.topology is empty" in capsys.readouterr().err
    assert cli.main("jaxbooth", [*command, "--topology", "v3:2x2"]) == 0
    assert "needs more" in capsys.readouterr().out and not json.loads(figures.read_text())["fits"]
    assert cli.main("jaxbooth", [*command, "--topology", "v3:2x2", "--find-batch"]) == 0
    assert "largest batch: train.batch_size=20, 5 rows on each device" in capsys.readouterr().out
    assert json.loads(figures.read_text())["rows_per_device"] == 5
    config.write_text("{}")
    assert cli.main("jaxbooth", command) == 2
    assert "model.source is empty; name the model to plan for" in capsys.readouterr().err


@pytest.mark.parametrize(("start", "step", "limit", "found"), [(2, 1, 13, 13), (64, 1, 13, 13), (4, 4, 30, 28)])
def test_the_largest_batch_is_found(start, step, limit, found):
    tried = []

    def make(rows):
        tried.append(rows)
        return Plan("v3:2x2", "TPU v3", 8, rows, 1, rows <= limit, rows, limit)

    plans = [make(start), *largest(make, step, make(start))]
    assert max(plan.rows_per_device for plan in plans if plan.fits) == found
    assert all(rows % step == 0 for rows in tried) and len(tried) < 10


def test_every_chip_has_the_clock_of_its_flops():
    """Matrix units of 128x128 (v6e: 256x256), a multiply-add of each a cycle."""
    units = {"TPU v2": 1, "TPU v3": 2, "TPU v4": 8, "TPU v5 lite": 4, "TPU v5": 8, "TPU v6 lite": 16}
    for kind, chip in chips.CHIPS.items():
        assert chip.flops == pytest.approx(2 * 128 * 128 * units[kind] * chip.clock, rel=0.02), kind


def test_what_is_pulled_towards_is_an_argument(tiny_config):
    tiny_config.train.pull, tiny_config.tokens.add = 1.0, ("<x>=a",)
    pipeline, mesh = open_pipeline(tiny_config.model.source), make_mesh(1)
    trainable, *_, anchor = plan_arguments.shapes_of_arguments(
        tiny_config, pipeline, networks.build(pipeline, mesh, tiny_config), mesh, 4
    )
    (new,) = trainable.keys() - anchor.keys()
    assert anchor.items() < trainable.items() and "token_embedding.added" in new


@pytest.mark.parametrize("text_encoder", [False, True])
def test_shapes_are_those_of_a_batch(tiny_config, tmp_path, text_encoder):
    """The plan compiles for the very shapes that training has."""
    from booth.data.inputs import check_inputs
    from booth.train.preparation import prepare
    from booth.train.run_folder import RunDir
    from jaxbooth.backend import Backend
    from jaxbooth.sharding import place_batch

    tiny_config.train.text_encoder = text_encoder
    rates = {name: jnp.float32(1e-4) for name in rate_groups(tiny_config)}
    inputs, backend, mesh = check_inputs(tiny_config), Backend(tiny_config), make_mesh(1)
    with RunDir.open(tmp_path / "run", "jax", tiny_config) as run:
        batches = prepare(tiny_config, inputs, run, backend, backend.load(inputs.pipeline))
    placed = place_batch(mesh, batches(0, rates), 1)
    planned = plan_arguments.batch(tiny_config, inputs.pipeline, mesh, rows=4)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), placed) == jax.tree.map(lambda a: (a.shape, a.dtype), planned)

"""LoRA: jaxbooth's own layers train as PEFT's do, and the file is what diffusers reads."""

import importlib
import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

from booth.commands import cli
from booth.config.values import set_field
from booth.models import adapters
from booth.models.adapters import adapter_of
from booth.models.lora_file import FILE, read_lora
from booth.models.open import open_pipeline
from booth.train import loop

STEPS = 20
CASES = {
    "attention": {"adapter.targets": "attention"},
    "everything, alpha is not the rank": {"adapter.targets": "all", "adapter.alpha": 3.0},
    "text encoder": {"train.text_encoder": True, "adapter.targets": "feed_forward"},
}


@pytest.fixture(scope="module")
def trained(make_tiny_config, tmp_path_factory):
    """(package, case) -> (config, run) of STEPS steps, trained once."""
    done = {}
    class_images = tmp_path_factory.mktemp("class_images")  # the same for all: backends may differ by 1 of 255

    def trained(package, case):
        if (package, case) not in done:
            config = make_tiny_config()
            fields = {"adapter.kind": "lora", "adapter.rank": 4, "train.learning_rate": 1e-3, "train.steps": STEPS}
            # A gradient that is no more than noise is no update of full size in a random direction then.
            fields["train.adam_eps"] = 1e-5
            for name, value in (fields | CASES[case]).items():
                set_field(config, name, value)
            backend_class = importlib.import_module(f"{package}.backend").Backend
            config.prior.images = str(class_images)
            folder = tmp_path_factory.mktemp("run") / "run"
            done[package, case] = config, loop.train(backend_class, config, folder)
        return done[package, case]

    return trained


def update(config, run):
    """What was added to the networks' weights, all of it in one vector."""
    pipeline = open_pipeline(config.model.source)
    before = {c: pipeline.tensors(c) for c in ("unet", "text_encoder")}
    return np.concatenate([(array - before[c][name]).ravel() for c, name, array in merged(pipeline, run)])


def merged(pipeline, run):
    """(component, name, array) of the networks with a run's adapters, as they are in its checkpoint."""
    return adapters.added(pipeline, {layer: [(u, 1.0)] for layer, u in read_lora(run.pipeline).layers.items()})


CASES_BUT_FOR_THE_LONG = [pytest.param(case, marks=[pytest.mark.full] * (case != "attention")) for case in CASES]


@pytest.mark.parametrize("case", CASES_BUT_FOR_THE_LONG)
def test_both_backends_train_the_same(trained, case):
    """By the parity measure of full fine-tuning: the update's direction and length, and every loss."""
    (config, torch_run), (_, jax_run) = trained("torchbooth", case), trained("jaxbooth", case)
    ours, theirs = update(config, jax_run), update(config, torch_run)
    assert np.linalg.norm(theirs) > 0
    assert np.linalg.norm(ours - theirs) <= 3e-4 * np.linalg.norm(theirs)
    for name, tolerance in (("loss", 1e-5), ("grad_norm", 1e-4)):
        values = [[line[name] for line in run.metrics] for run in (jax_run, torch_run)]
        np.testing.assert_allclose(*values, rtol=tolerance, err_msg=name)
    assert np.linalg.norm(1.01 * ours - theirs) > 3e-4 * np.linalg.norm(theirs), "the measure sees a wrong scale"


@pytest.mark.parametrize("package", ["torchbooth", "jaxbooth"])
@pytest.mark.parametrize("case", CASES_BUT_FOR_THE_LONG)
def test_diffusers_reads_the_file(trained, package, case, tmp_path):
    """The same outputs as the merged weights, within 1e-5 relative."""
    config, run = trained(package, case)
    assert cli.main(package, ["export", "--run", str(run.path), "--out", str(tmp_path / "merged")]) == 0
    plain = StableDiffusionPipeline.from_pretrained(tmp_path / "merged", safety_checker=None)
    adapted = StableDiffusionPipeline.from_pretrained(config.model.source, safety_checker=None)
    adapted.load_lora_weights(run.pipeline)
    ids = torch.arange(77)[None] % 100
    with torch.no_grad():
        contexts = [p.text_encoder(ids)[0] for p in (plain, adapted)]
        latents, time = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([300])
        outputs = [p.unet(latents, time, c)[0] for p, c in zip((plain, adapted), contexts, strict=True)]
        untouched = StableDiffusionPipeline.from_pretrained(config.model.source, safety_checker=None)
        base = untouched.unet(latents, time, untouched.text_encoder(ids)[0])[0]
    for one, two in (contexts, outputs):
        assert (one - two).norm() < 1e-5 * two.norm()
    assert (outputs[1] - base).norm() > 1e-3 * base.norm(), "the adapter does something"


def test_the_file(trained):
    _, run = trained("torchbooth", "text encoder")
    with safe_open(run.pipeline / FILE, framework="np") as file:
        keys, metadata = sorted(file.keys()), file.metadata()
    assert all(key.startswith(("unet.", "text_encoder.text_model.encoder.layers.")) for key in keys)
    assert {key.rpartition(".lora_")[2] for key in keys} == {"A.weight", "B.weight"}
    settings = json.loads(metadata["lora_adapter_metadata"])
    assert settings["unet.r"] == 4 and settings["text_encoder.lora_alpha"] == 4.0
    assert (run.pipeline / FILE).stat().st_size < 1_000_000
    assert not (run.path / "pipeline").exists()


@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
def test_a_file_for_webuis(trained, package, tmp_path, capsys):
    """`export --run --format kohya`: the tensors of the run's own file, and what the run knows of them."""
    config, run = trained(package, "text encoder")
    command = ["export", "--run", str(run.path), "--format", "kohya", "--out", str(tmp_path / "robot.safetensors")]
    assert cli.main(package, command) == 0
    ours, theirs = read_lora(run.pipeline), read_lora(tmp_path / "robot.safetensors")
    assert ours.layers.keys() == theirs.layers.keys() and not any(".lora_A." in key for key in load_file(command[-1]))
    for layer, update in ours.layers.items():
        other = theirs.layers[layer]
        assert np.array_equal(update.down, other.down) and np.array_equal(update.up, other.up)
        assert update.alpha == other.alpha == 4.0
    said = theirs.metadata
    assert said["ss_output_name"] == "robot" and said["ss_sd_model_name"] == "tiny" and said["ss_v2"] == "False"
    assert said["modelspec.architecture"] == "stable-diffusion-v1/lora" and said["modelspec.resolution"] == "64x64"
    assert said["modelspec.trigger_phrase"] == config.instance.prompt
    assert cli.main(package, command) == 2 and "exists; choose another name" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
def test_only_the_adapter_trains_and_is_saved(make_tiny_config, tmp_path, package):
    config = make_tiny_config()
    config.adapter.kind, config.train.learning_rate = "lora", 1e-3
    backend_class = importlib.import_module(f"{package}.backend").Backend
    seen = {}

    class Watched(backend_class):
        def save(self, state, folder):
            seen["state"], seen["names"] = state, {f"{c}.{n}" for c, n, _ in self.tensors(state)}
            super().save(state, folder)

    run = loop.train(Watched, config, tmp_path / "run")
    adapter = adapter_of(config, open_pipeline(config.model.source))
    assert seen["names"] == adapter.tensor_shapes().keys()
    assert set(backend_class.saved_names(run.path / "checkpoints" / "step-000004")) == seen["names"]
    source = open_pipeline(config.model.source).tensors("unet")
    if package == "torchbooth":
        now = {n.replace(".base_layer.", "."): p for n, p in seen["state"].models.unet.named_parameters()}
        frozen = {name: now[name].detach().numpy() for name in source}
    else:
        from jaxbooth.weights import to_diffusers

        models = seen["state"].models
        frozen = {name: to_diffusers(models.unet, name, models.params[f"unet.{name}"]) for name in source}
    assert all(np.array_equal(frozen[name], source[name]) for name in source)
    size = sum(path.stat().st_size for path in (run.path / "checkpoints").rglob("*") if path.is_file())
    assert size < 0.2 * sum(array.nbytes for array in source.values())
    parts = tmp_path / "parts"
    config.train.steps = 2
    loop.train(backend_class, config, parts)
    config.train.steps = 4
    again = loop.train(backend_class, config, parts)
    one, two = load_file(run.pipeline / FILE), load_file(again.pipeline / FILE)
    assert all(np.array_equal(one[name], two[name]) for name in one), "resumed to the bit"
    assert loop.train(backend_class, config, parts).metrics == again.metrics, "nothing is left to do"


@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
def test_a_run_begun_when_all_meant_every_layer(make_tiny_config, tmp_path, package, monkeypatch, caplog):
    """It goes on with the layers that it has, and is exported with them, in each form; a new one has fewer."""
    config, backend_class = make_tiny_config(), importlib.import_module(f"{package}.backend").Backend
    for name, value in {"kind": "lora", "targets": "all", "rank": 2, "alpha": 3.0}.items():
        set_field(config, f"adapter.{name}", value)
    config.train.learning_rate, config.train.steps = 1e-3, 4
    with monkeypatch.context() as before:
        before.setitem(adapters.PRESETS, "all", ".*")
        whole = loop.train(backend_class, config, tmp_path / "whole")
        config.train.steps = 2
        loop.train(backend_class, config, tmp_path / "parts")
    config.train.steps = 4
    with caplog.at_level("INFO", "booth"):
        parts = loop.train(backend_class, config, tmp_path / "parts")
    assert "adapters of unet.conv_in, unet.conv_out, unet.time_embedding.linear_1" in caplog.text
    one, two = (load_file(run.pipeline / FILE) for run in (whole, parts))
    assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)
    file, folder = tmp_path / "a.safetensors", tmp_path / "merged"
    of_run = ["export", "--run", str(parts.path)]
    assert cli.main(package, [*of_run, "--format", "kohya", "--out", str(file)]) == 0
    assert cli.main(package, [*of_run, "--out", str(folder)]) == 0
    layers = read_lora(file).layers
    assert "unet.conv_in" in layers and {update.alpha for update in layers.values()} == {3.0}
    exported = open_pipeline(folder).tensors("unet")
    for name, array in ((n, a) for c, n, a in merged(open_pipeline(config.model.source), parts) if c == "unet"):
        np.testing.assert_allclose(exported[name], array, rtol=0, atol=1e-6)
    moved = exported["conv_in.weight"] - open_pipeline(config.model.source).tensors("unet")["conv_in.weight"]
    assert np.abs(moved).max() > 1e-5
    if package == "torchbooth":
        config.train.steps = 1
        new = loop.train(backend_class, config, tmp_path / "new")
        assert "unet.conv_in" not in read_lora(new.pipeline).layers


@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
def test_a_lora_counts_as_much_as_is_asked(trained, package, tmp_path):
    """With weight 0 the base's pictures, with 1 the run's own; in a grid each beside the other."""
    config, run = trained(package, "attention")
    common = [
        "--prompt",
        "a photo of sks robot",
        "--steps",
        "2",
        "--size",
        "64",
        "--batch-size",
        "1",
        "--guidance",
        "1",
    ]

    def picture(name, *arguments, file="000-a-photo-of-sks-robot-seed0.png"):
        assert cli.main(package, ["sample", *arguments, *common, "--out", str(tmp_path / name)]) == 0
        return np.asarray(Image.open(tmp_path / name / file), np.int32)

    of_run = ["--run", str(run.path)]
    base, own = picture("base", "--model", str(config.model.source)), picture("own", *of_run)
    assert np.abs(picture("none", *of_run, "--lora-weight", "0") - base).max() <= 1
    assert np.array_equal(picture("one", *of_run, "--lora-weight", "1"), own) and np.abs(own - base).max() > 3
    second = "001-a-photo-of-sks-robot-seed0.png"
    assert np.array_equal(picture("grid", *of_run, "--x", "lora_weight=0,1", file=second), own)
    assert (tmp_path / "grid" / "xy.png").is_file()
    refused = [
        "sample",
        "--model",
        str(config.model.source),
        "--lora-weight",
        "1",
        *common,
        "--out",
        str(tmp_path / "x"),
    ]
    assert cli.main(package, refused) == 2

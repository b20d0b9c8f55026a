"""Exported pipelines: what was trained is in them, all else is untouched, and diffusers loads them."""

import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from safetensors.numpy import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTokenizer

from booth.common.errors import UserError
from booth.models import export_single_file
from booth.models.export_folder import export, exported_step
from booth.models.pipeline import open_pipeline

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


@pytest.fixture
def folder(tiny_pipeline, tmp_path):
    """A copy to change. Files are hard links: replace them, never write into them."""
    return shutil.copytree(tiny_pipeline, tmp_path / "model", copy_function=os.link)


def train(pipeline, *components):
    """Stands for training: every weight moves, in an order that is not the file's."""
    for component in components:
        for name, array in reversed(pipeline.tensors(component).items()):
            yield component, name, array.astype(np.float32) + np.float32(0.25)


def crash():
    raise SystemError


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def record(folder):
    return json.loads((folder / "export.json").read_text())


def load(folder):
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def assert_diffusers_reads(folder, component, expected):
    """Every parameter of the module is one of `expected`, to the bit, under its own name."""
    state = getattr(load(folder), component).state_dict()
    spelled = {name: state.get(name, state.get(name.removeprefix("text_model."))) for name in expected}
    assert len(state) == len(expected)
    for name, tensor in spelled.items():
        np.testing.assert_array_equal(tensor.numpy(), expected[name], strict=True, err_msg=name)


def test_trained_weights_load_in_diffusers_and_the_rest_is_copied(tiny_pipeline, tmp_path):
    source, out = open_pipeline(tiny_pipeline), tmp_path / "runs" / "pipeline"
    export(source, out, train(source, "unet", "text_encoder"), step=7)
    for component in ("unet", "text_encoder"):
        expected = {name: array for _, name, array in train(source, component)}
        assert_diffusers_reads(out, component, expected)
    before, after = files(tiny_pipeline), files(out)
    assert after.keys() - before.keys() == {"export.json"}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {f"unet/{WEIGHTS['unet']}", f"text_encoder/{WEIGHTS['text_encoder']}"}
    assert record(out)["changed_files"].keys() == changed
    assert record(out)["trained"] == ["text_encoder", "unet"]
    assert record(out)["source"]["weights_sha256"]["unet"] == source.weights_hash("unet")
    assert record(out)["weights_sha256"]["unet"] == open_pipeline(out).weights_hash("unet")
    assert exported_step(out) == 7
    assert exported_step(tiny_pipeline) is None
    assert [path.name for path in out.parent.iterdir()] == ["pipeline"]


def test_writes_the_bytes_that_safetensors_would(tiny_pipeline, tmp_path):
    source = open_pipeline(tiny_pipeline)
    untrained = (("unet", name, array) for name, array in source.tensors("unet").items())
    export(source, tmp_path / "out", untrained)
    name = f"unet/{WEIGHTS['unet']}"
    assert (tmp_path / "out" / name).read_bytes() == (tiny_pipeline / name).read_bytes()


def test_file_modes_follow_the_umask(tiny_pipeline, folder, tmp_path):
    # Private files in the source, as safetensors itself writes them.
    private = folder / "vae" / WEIGHTS["vae"]
    private.unlink()
    shutil.copyfile(tiny_pipeline / "vae" / WEIGHTS["vae"], private)
    private.chmod(0o600)
    source = open_pipeline(folder)
    previous = os.umask(0o022)
    try:
        export(source, tmp_path / "out", train(source, "text_encoder"))
    finally:
        os.umask(previous)
    for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644), path


@pytest.mark.parametrize("trained", [(), ("text_encoder",)])
def test_text_encoder_keys_get_their_prefix(folder, tmp_path, trained):
    path = folder / "text_encoder" / WEIGHTS["text_encoder"]
    bare = {key.removeprefix("text_model."): array for key, array in load_file(path).items()}
    path.unlink()
    position_ids = np.arange(77)[None]
    save_file(bare | {"embeddings.position_ids": position_ids}, path, metadata={"format": "pt"})
    source = open_pipeline(folder)
    export(source, tmp_path / "out", train(source, *trained))
    written = load_file(tmp_path / "out/text_encoder" / WEIGHTS["text_encoder"])
    assert written.keys() == {f"text_model.{key}" for key in bare} | {"text_model.embeddings.position_ids"}
    np.testing.assert_array_equal(written["text_model.embeddings.position_ids"], position_ids, strict=True)
    expected = source.tensors("text_encoder") | {name: array for _, name, array in train(source, *trained)}
    assert_diffusers_reads(tmp_path / "out", "text_encoder", expected)
    assert "text_model." in record(tmp_path / "out")["changed_files"]["text_encoder/model.safetensors"]


def test_old_vae_spelling_survives_a_conversion(folder, tmp_path):
    path = folder / "vae" / WEIGHTS["vae"]
    old = {key.replace(".to_q.", ".query."): array for key, array in load_file(path).items()}
    path.unlink()
    save_file(old, path, metadata={"format": "pt"})
    export(open_pipeline(folder), tmp_path / "out", (), "bf16")
    assert load_file(tmp_path / "out/vae" / WEIGHTS["vae"]).keys() == old.keys()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_converts_every_network(tiny_pipeline, tmp_path, precision):
    source, out = open_pipeline(tiny_pipeline), tmp_path / "out"
    export(source, out, train(source, "unet"), precision)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    expected = {n: torch.from_numpy(array).to(dtype).float().numpy() for _, n, array in train(source, "unet")}
    assert_diffusers_reads(out, "unet", expected)
    for component in WEIGHTS:
        specs = open_pipeline(out).weights[component].specs.values()
        assert {spec.dtype for keys in specs for spec in keys.values()} == {precision.replace("fp", "F").upper()}
        assert sum(path.stat().st_size for path in (out / component).glob("*.safetensors")) < 0.6 * sum(
            path.stat().st_size for path in (tiny_pipeline / component).glob("*.safetensors")
        )
    image = load(out)("a photo of a dog", num_inference_steps=2, output_type="np").images[0]
    assert np.isfinite(image).all()
    assert record(out)["changed_files"][f"vae/{WEIGHTS['vae']}"] == f"converted to {precision}"


def half_pipeline(tiny_pipeline, out, precision, **named):
    """A copy in half precision whose text encoder's config names the types given; none where they are None."""
    export(open_pipeline(tiny_pipeline), out, (), precision)
    path = out / "text_encoder" / "config.json"
    config = json.loads(path.read_text()) | named
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return out


@pytest.mark.parametrize(
    "named",
    [
        {"dtype": "float16"}, {"dtype": None}, {"dtype": None, "torch_dtype": "float16"},
        {"dtype": "bfloat16", "torch_dtype": "float32"}, {"dtype": "float32"},
    ],
    ids=lambda named: " ".join(f"{key}={value}" for key, value in named.items()),
)  # fmt: skip
@pytest.mark.parametrize(("precision", "trained"), [("source", ()), ("source", ("unet",)), ("bf16", ("text_encoder",))])
def test_half_precision_opens_by_the_plainest_call(tiny_pipeline, tmp_path, named, precision, trained):
    """Whatever type the source's config names, and whatever the weights beside it are."""
    source, out = open_pipeline(half_pipeline(tiny_pipeline, tmp_path / "half", "fp16", **named)), tmp_path / "out"
    export(source, out, train(source, *trained), precision)
    pipe = load(out)
    assert np.isfinite(pipe("a dog", num_inference_steps=1, output_type="np").images[0]).all()
    assert pipe.text_encoder.dtype == pipe.unet.dtype == pipe.vae.dtype == torch.float32
    halves = StableDiffusionPipeline.from_pretrained(out, torch_dtype=torch.float16)
    assert halves.text_encoder.dtype == halves.unet.dtype == halves.vae.dtype == torch.float16
    config, before = (json.loads((folder / "text_encoder/config.json").read_text()) for folder in (out, source.path))
    types = {"dtype", "torch_dtype"}
    assert {name: config[name] for name in config.keys() - types} == {n: before[n] for n in before.keys() - types}
    if "text_encoder/config.json" in record(out)["changed_files"]:
        assert {config[name] for name in types & config.keys()} == {"float32"} and "dtype" in config
    else:
        assert (
            named["dtype"] == "float32"
            and files(out / "text_encoder")["config.json"] == (source.path / "text_encoder/config.json").read_bytes()
        )


def test_a_full_precision_export_of_a_model_that_names_half(tiny_pipeline, tmp_path):
    """transformers would make half precision of what was trained in float32."""
    source = open_pipeline(half_pipeline(tiny_pipeline, tmp_path / "half", "fp16", dtype="float16"))
    export(source, tmp_path / "out", train(source, "text_encoder"), added=())
    expected = {name: array for _, name, array in train(source, "text_encoder")}
    assert_diffusers_reads(tmp_path / "out", "text_encoder", expected)


def test_a_safety_checker_in_half_precision(tiny_pipeline, tmp_path):
    """It gets pictures of the text encoder's type: so it is opened in the same. One that cannot be read is copied."""
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=small, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=12
    )
    pipe = load(tiny_pipeline)
    checker = StableDiffusionSafetyChecker(config).half()
    extractor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pipe.register_modules(safety_checker=checker, feature_extractor=extractor)
    pipe.save_pretrained(tmp_path / "model")
    export(open_pipeline(tmp_path / "model"), tmp_path / "out", ())
    assert np.isfinite(load(tmp_path / "out")("a dog", num_inference_steps=1, output_type="np").images[0]).all()
    assert record(tmp_path / "out")["changed_files"].keys() >= {"safety_checker/config.json"}
    (tmp_path / "model/safety_checker/model.safetensors").write_bytes(b"x")
    export(open_pipeline(tmp_path / "model"), tmp_path / "out", ())
    assert files(tmp_path / "out/safety_checker") == files(tmp_path / "model/safety_checker")


def test_fp16_refuses_weights_beyond_its_range(tiny_pipeline, tmp_path):
    source = open_pipeline(tiny_pipeline)
    trained = ((c, n, array * np.float32(1e6)) for c, n, array in train(source, "unet"))
    with pytest.raises(UserError, match=r"export\.precision=fp16 cannot hold .* use bf16 or fp32"):
        export(source, tmp_path / "out", trained, "fp16")
    assert list(tmp_path.iterdir()) == []


def test_half_precision_source_variant_loads_without_asking(tiny_pipeline, tmp_path):
    export(open_pipeline(tiny_pipeline), tmp_path / "half", (), "fp16")
    for component, name in WEIGHTS.items():
        path = tmp_path / "half" / component / name
        path.rename(path.with_name(name.replace(".", ".fp16.")))
    source, out = open_pipeline(tmp_path / "half", "fp16"), tmp_path / "out"
    export(source, out, train(source, "unet"))
    assert sorted(path.name for path in out.glob("*/*.safetensors")) == sorted(WEIGHTS.values())
    assert_diffusers_reads(out, "unet", {name: array for _, name, array in train(source, "unet")})
    name = WEIGHTS["vae"]
    half = tmp_path / "half/vae" / name.replace(".", ".fp16.")
    assert (out / "vae" / name).read_bytes() == half.read_bytes()
    assert record(out)["changed_files"][f"vae/{name}"] == f"named {half.name} in the source"
    assert np.isfinite(load(out)("a dog", num_inference_steps=2, output_type="np").images[0]).all()

    export(source, out, (), "fp32")
    assert {array.dtype for array in open_pipeline(out).tensors("vae").values()} == {np.dtype("float32")}


@pytest.mark.parametrize("variant", ["", "fp16"])
@pytest.mark.parametrize("trained", [(), ("unet",)])
def test_shards_stay_shards(tiny_pipeline, folder, tmp_path, variant, trained):
    shutil.rmtree(folder / "unet")
    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline, subfolder="unet")
    unet.save_pretrained(folder / "unet", max_shard_size="5MB", variant=variant or None)
    for component in ("vae", "text_encoder") if variant else ():
        path = folder / component / WEIGHTS[component]
        path.rename(path.with_name(path.name.replace(".", f".{variant}.")))
    source, out = open_pipeline(folder, variant), tmp_path / "out"
    export(source, out, train(source, *trained))
    plain = {path.name.replace(f".{variant}", "") if variant else path.name for path in (folder / "unet").iterdir()}
    assert {path.name for path in (out / "unet").iterdir()} == plain
    assert len(plain) > 3  # config, index, shards
    expected = source.tensors("unet") | {name: array for _, name, array in train(source, *trained)}
    assert_diffusers_reads(out, "unet", expected)
    if not variant and not trained:
        assert files(out / "unet") == files(folder / "unet")


def test_tokenizer_json_alone_gives_vocabulary_and_merges(tiny_pipeline, folder, tmp_path):
    prompts = ["a photo of <saya_token> dog on the beach", "Zürich 東京 dog's 12 !?", ""]
    original = CLIPTokenizer.from_pretrained(tiny_pipeline / "tokenizer")
    original.add_tokens(["<saya_token>"])
    shutil.rmtree(folder / "tokenizer")
    original.save_pretrained(folder / "tokenizer")
    assert not (folder / "tokenizer/vocab.json").exists()
    export(open_pipeline(folder), tmp_path / "out", ())
    assert CLIPTokenizer.from_pretrained(tmp_path / "out/tokenizer")(prompts).input_ids == original(prompts).input_ids
    (tmp_path / "out/tokenizer/tokenizer.json").unlink()  # as transformers 4 reads it
    assert CLIPTokenizer.from_pretrained(tmp_path / "out/tokenizer")(prompts).input_ids == original(prompts).input_ids
    for name in ("vocab.json", "merges.txt"):
        before = (tiny_pipeline / "tokenizer" / name).read_text()
        assert (tmp_path / "out/tokenizer" / name).read_text() == before
        assert record(tmp_path / "out")["changed_files"][f"tokenizer/{name}"] == "made from tokenizer.json"


@pytest.mark.parametrize(
    "content", ["{", "{}", '{"model": {"vocab": 1, "merges": [1]}, "added_tokens": [{}]}', "[" * 100_000]
)
def test_a_broken_tokenizer_is_one_line(folder, tmp_path, content):
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/tokenizer.json").write_text(content)
    source = open_pipeline(folder)
    with pytest.raises(UserError, match=r"model/tokenizer/tokenizer\.json is .*; download it again$"):
        export(source, tmp_path / "out", ())
    with pytest.raises(UserError, match=r"model/tokenizer/tokenizer\.json is .*; download it again$"):
        export_single_file.write(source, tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_copies_named_components_and_nothing_stray(folder, tmp_path):
    index = json.loads((folder / "model_index.json").read_text())
    index |= {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }
    (folder / "model_index.json").unlink()
    (folder / "model_index.json").write_text(json.dumps(index))
    for name in (
        "safety_checker/config.json",
        "safety_checker/pytorch_model.bin",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/diffusion_flax_model.msgpack",
        "v1-5-pruned.ckpt",
        "logs/events",
        "tokenizer/.DS_Store",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    export(open_pipeline(folder), tmp_path / "out", ())
    kept = {"safety_checker/config.json", "safety_checker/pytorch_model.bin", "export.json"}
    clean = {path for path in files(folder) if not path.endswith((".bin", ".msgpack", ".ckpt", "events", ".DS_Store"))}
    clean.remove("unet/diffusion_pytorch_model.non_ema.safetensors")
    assert files(tmp_path / "out").keys() == clean | kept
    # model_index.json names a feature extractor that the source does not have
    written = json.loads((tmp_path / "out/model_index.json").read_text())
    assert written == index | {"feature_extractor": [None, None]}
    assert record(tmp_path / "out")["changed_files"].keys() == {"model_index.json"}


@pytest.mark.parametrize("fault", ["missing", "unknown", "twice", "shape"])
def test_trained_weights_must_be_exactly_the_sources(tiny_pipeline, tmp_path, fault):
    source = open_pipeline(tiny_pipeline)
    trained = list(train(source, "unet"))
    component, name, array = trained.pop()
    if fault != "missing":
        trained.append((component, name, array))
    if fault == "unknown":
        trained.append((component, "lora.weight", array))
    if fault == "twice":
        trained.append((component, name, array))
    if fault == "shape":
        trained[0] = (*trained[0][:2], trained[0][2][None])
    with pytest.raises(RuntimeError) as error:
        export(source, tmp_path / "out", iter(trained))
    assert {"missing": name, "unknown": "lora.weight", "twice": name, "shape": "has shape (1,"}[fault] in str(
        error.value
    )
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_is_replaced_only_by_a_complete_one(tiny_pipeline, tmp_path, monkeypatch):
    source, out = open_pipeline(tiny_pipeline), tmp_path / "out"
    export(source, out, (), step=1)

    def interrupted():
        yield next(train(source, "unet"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(source, out, interrupted(), step=2)
    assert exported_step(out) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

    # Stopped at the worst moment: the old export has lost its name, the new one has not got it yet.
    replace = Path.replace
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        patch.setattr(Path, "replace", lambda path, target: crash() if target == out else replace(path, target))
        export(source, out, (), step=2)
    assert not out.exists()
    (tmp_path / ".staging-.new-out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        export(source, out, interrupted(), step=2)
    assert exported_step(out) == 1
    (tmp_path / ".old-out").mkdir()
    (tmp_path / ".new-out").mkdir()
    export(source, out, train(source, "unet"), step=3)
    assert exported_step(out) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert record(out)["trained"] == ["unet"]


def test_replaces_nothing_that_is_not_an_export(tiny_pipeline, folder, tmp_path, monkeypatch):
    source = open_pipeline(folder)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/dog.png").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for out, reason in (
        (tmp_path / "photos", "holds other files"),
        (tmp_path / "file", "it is a file"),
        (folder, "would replace the source"),
        (tmp_path, "would replace the source"),
    ):
        with pytest.raises(UserError, match=reason) as error:
            export(source, out, ())
        assert str(out) in str(error.value) and "\n" not in str(error.value)
    assert files(folder) == files(tiny_pipeline)
    assert (tmp_path / "photos/dog.png").exists()
    monkeypatch.chdir(tmp_path / "empty")
    export(source, Path(), ())
    assert load(tmp_path / "empty").unet.config.sample_size == 8


def test_a_full_disk_is_one_line(tiny_pipeline, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("booth.models.export_folder.shutil.copyfile", full)
    with pytest.raises(UserError, match="No space left on device") as error:
        export(open_pipeline(tiny_pipeline), tmp_path / "out", ())
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []

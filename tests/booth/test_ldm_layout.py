"""The layout of single files against diffusers' converter, which reads the published ones: names, shapes, values."""

import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from make_pipeline import SIZES, build_networks
from safetensors.torch import load_file

from booth.common.errors import UserError
from booth.models import export_single_file, ldm_layout
from booth.models.open import open_pipeline
from booth.models.weight_names import canonical_name

REAL = ("sd15", "sd21-512", "sd21-768")


def networks(size):
    with torch.device("meta"):
        return build_networks(size)


def shapes(size):
    """(component, canonical name) -> shape, of the libraries' own networks."""
    return {
        (component, canonical_name(component, name)): tuple(tensor.shape)
        for component, network in networks(size).items()
        for name, tensor in network.state_dict().items()
    }


def file_tensors(size):
    """A whole file of a size, its tensors without memory."""
    known, found = shapes(size), {}
    for key, piece in ldm_layout.table(SIZES[size]).items():
        shape = known[piece.component, piece.names[0]]
        assert all(known[piece.component, name] == shape for name in piece.names)
        found[key] = torch.empty(piece.in_file(shape), device="meta")
    extra = ldm_layout.unused(SIZES[size])
    assert not found.keys() & extra.keys()
    return found | {key: torch.empty(array.shape, device="meta") for key, array in extra.items()}


def as_diffusers_reads(tensors, configs):
    """(component, canonical name) -> tensor."""
    read = {
        "unet": convert_ldm_unet_checkpoint(dict(tensors), configs["unet"]),
        "vae": convert_ldm_vae_checkpoint(dict(tensors), configs["vae"]),
    }
    if "text_encoder_2" in configs:
        second = text_model_of(configs["text_encoder_2"])
        read["text_encoder"] = convert_ldm_clip_checkpoint(dict(tensors), remove_prefix=ldm_layout.XL_CLIP)
        read["text_encoder_2"] = convert_open_clip_checkpoint(second, dict(tensors), prefix=ldm_layout.XL_OPEN_CLIP)
    elif ldm_layout.is_open_clip(configs["text_encoder"]):
        read["text_encoder"] = convert_open_clip_checkpoint(text_model_of(configs["text_encoder"]), dict(tensors))
    else:
        read["text_encoder"] = convert_ldm_clip_checkpoint(dict(tensors))
    last = f".layers.{configs['text_encoder']['num_hidden_layers']}."  # the layer that nothing here has
    return {
        (component, canonical_name(component, name)): tensor
        for component, found in read.items()
        for name, tensor in found.items()
        if (component == "text_encoder_2" or (last not in name and "text_projection" not in name))
        and canonical_name(component, name)
    }


def text_model_of(config):
    return type("Text", (), {"config": type("Config", (), config)})


@pytest.mark.parametrize("size", SIZES)
def test_every_weight_of_the_networks_has_one_place(size):
    pieces = ldm_layout.table(SIZES[size])
    places = ldm_layout.inverse(pieces)
    assert places.keys() == shapes(size).keys()
    assert len(places) == sum(len(piece.names) for piece in pieces.values())
    assert {(key, part) for key, part in places.values()} == {
        (key, part) for key, piece in pieces.items() for part in range(len(piece.names))
    }


@pytest.mark.parametrize("size", REAL)
def test_full_size_files_have_the_published_keys_and_shapes(size):
    """686 of the UNet, 248 of the VAE; CLIP's 196 and its positions, or OpenCLIP's 294 in 24 layers."""
    tensors = file_tensors(size)
    counts = [sum(key.startswith(start) for key in tensors) for start in
              ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")]  # fmt: skip
    assert counts == [686, 248, 197 if size == "sd15" else 294] and sum(counts) == len(tensors)
    expected = shapes(size)
    read = as_diffusers_reads(tensors, SIZES[size])
    assert {place: tuple(tensor.shape) for place, tensor in read.items()} == expected
    known = {  # by which programs tell the families apart
        "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight":
            (320, SIZES[size]["unet"]["cross_attention_dim"]),
        "model.diffusion_model.output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1),
        "model.diffusion_model.input_blocks.1.1.proj_in.weight": (320, 320, 1, 1) if size == "sd15" else (320, 320),
        "first_stage_model.decoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "first_stage_model.encoder.down.2.block.0.nin_shortcut.weight": (512, 256, 1, 1),
    } | (
        {"cond_stage_model.transformer.text_model.embeddings.position_ids": (1, 77)} if size == "sd15" else
        {"cond_stage_model.model.transformer.resblocks.23.attn.in_proj_weight": (3072, 1024),
         "cond_stage_model.model.text_projection": (1024, 1024), "cond_stage_model.model.logit_scale": (),
         "cond_stage_model.model.ln_final.weight": (1024,), "cond_stage_model.model.positional_embedding": (77, 1024)}
    )  # fmt: skip
    assert {key: tuple(tensors[key].shape) for key in known} == known


def test_a_full_size_xl_file_has_the_published_keys_and_shapes():
    """1680 of the UNet, 248 of the VAE; CLIP's 196 and its positions; OpenCLIP's 389 in 32 layers, and two more."""
    tensors, configs = file_tensors("sdxl"), SIZES["sdxl"]
    starts = ("model.diffusion_model.", "first_stage_model.", "conditioner.embedders.0.", "conditioner.embedders.1.")
    counts = [sum(key.startswith(start) for key in tensors) for start in starts]
    assert counts == [1680, 248, 197, 390] and sum(counts) == len(tensors) == 2515
    read = as_diffusers_reads(tensors, configs)
    assert {place: tuple(tensor.shape) for place, tensor in read.items()} == shapes("sdxl")
    known = {  # by which programs tell the families apart
        "model.diffusion_model.label_emb.0.0.weight": (1280, 2816),
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight": (640, 2048),
        "model.diffusion_model.middle_block.1.transformer_blocks.9.norm1.weight": (1280,),
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": (1, 77),
        "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (1280,),
        "conditioner.embedders.1.model.ln_final.weight": (1280,),
        "conditioner.embedders.1.model.text_projection": (1280, 1280),
        "conditioner.embedders.1.model.logit_scale": (),
    }
    assert {key: tuple(tensors[key].shape) for key in known} == known


def test_diffusers_finds_every_weight_of_an_xl_file():
    """The projection of the second text encoder, too, which the file has transposed."""
    torch.manual_seed(0)
    here = {
        (component, canonical_name(component, name)): tensor
        for component, network in build_networks("tiny-sdxl").items()
        for name, tensor in network.state_dict().items()
    }
    file = {}
    for key, piece in ldm_layout.table(SIZES["tiny-sdxl"]).items():
        tensor = torch.cat([here[piece.component, name] for name in piece.names])
        tensor = tensor.T if piece.transposed else tensor
        file[key] = tensor.reshape(piece.in_file(tuple(here[piece.component, piece.names[0]].shape))).contiguous()
        for part, name in enumerate(piece.names):
            assert np.array_equal(piece.weight(file[key].numpy(), part), here[piece.component, name].numpy())
    found = as_diffusers_reads(file, SIZES["tiny-sdxl"])
    assert found.keys() == here.keys()
    assert all(torch.equal(tensor, here[place]) for place, tensor in found.items())


def read_by_diffusers(folder, size, out):
    """What diffusers' converter makes of the file of a pipeline, and what the pipeline has, as NumPy arrays."""
    source = open_pipeline(folder)
    export_single_file.write(source, out)
    found = as_diffusers_reads(load_file(out), SIZES[size])
    expected = {(part, name): array for part in source.family.networks for name, array in source.tensors(part).items()}
    return {place: tensor.numpy() for place, tensor in found.items()}, expected


@pytest.fixture(params=["tiny", "tiny-sd2"])
def size(request):
    return request.param


@pytest.fixture
def folder(size, tiny_pipeline, tiny_sd2_pipeline):
    return {"tiny": tiny_pipeline, "tiny-sd2": tiny_sd2_pipeline}[size]


def test_diffusers_finds_every_weight_to_the_bit(folder, size, tmp_path):
    found, expected = read_by_diffusers(folder, size, tmp_path / "x.safetensors")
    assert found.keys() == expected.keys()
    for place, array in expected.items():
        np.testing.assert_array_equal(found[place], array, strict=True, err_msg=str(place))


SWAPS = {
    "query and key of the VAE": ("_VAE_ATTENTION", "to_q", "to_k"),
    "norms of a block": ("_UNET_RESNET", "norm1", "norm2"),
    "convolutions of the VAE": ("_VAE_RESNET", "conv1", "conv2"),
    "norms of OpenCLIP": ("_OPEN_CLIP_LAYER", "layer_norm1", "layer_norm2"),
}


@pytest.mark.parametrize("swap", SWAPS)
def test_a_swapped_rule_is_noticed(swap, tiny_sd2_pipeline, tmp_path, monkeypatch):
    name, one, other = SWAPS[swap]
    rules = getattr(ldm_layout, name)
    monkeypatch.setattr(ldm_layout, name, {**rules, one: rules[other], other: rules[one]})
    found, expected = read_by_diffusers(tiny_sd2_pipeline, "tiny-sd2", tmp_path / "x.safetensors")
    assert found.keys() == expected.keys()
    assert any(not np.array_equal(found[place], array) for place, array in expected.items())


def test_what_is_missing_or_left_over_is_listed():
    pieces = ldm_layout.table(SIZES["tiny"])
    gone = "first_stage_model.quant_conv.bias"
    beside = {"model_ema.decay", "alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "posterior_mean_coef1", "betas"}
    ldm_layout.check_complete("x", pieces.keys() | beside, pieces)
    with pytest.raises(UserError, match=rf"^x: .*missing {gone}; left over first_stage_model.other$"):
        ldm_layout.check_complete("x", (pieces.keys() | {"first_stage_model.other"}) - {gone}, pieces)


def test_the_layer_that_nothing_uses_adds_nothing():
    """Zero output projections: the residual stream goes through it unchanged, whatever it is."""
    config = SIZES["tiny-sd2"]["text_encoder"]
    extra = ldm_layout.unused(SIZES["tiny-sd2"])
    ends = [key for key in extra if key.endswith(("attn.out_proj.weight", "attn.out_proj.bias", "c_proj.weight"))]
    assert len(ends) == 3 and all(".resblocks.2." in key and not extra[key].any() for key in ends)
    assert np.array_equal(extra["cond_stage_model.model.text_projection"], np.eye(config["hidden_size"]))
    assert np.isclose(np.exp(extra["cond_stage_model.model.logit_scale"]), 100)


def test_a_config_without_a_form_is_refused():
    with pytest.raises(UserError, match="no single-file form"):
        ldm_layout.table({**SIZES["tiny"], "unet": {**SIZES["tiny"]["unet"], "layers_per_block": [1, 2]}})

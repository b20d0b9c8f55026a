"""LoRA files in every layout: names undone, nothing lost on the way, merging, and one line for what cannot work."""

import json
import math

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from booth.commands import cli
from booth.common import disk_space
from booth.common.errors import UserError
from booth.data.prompts import spoken_prompt
from booth.models import adapters, export_single_file
from booth.models.adapters import LowRank, layers, weight_shapes
from booth.models.lora_file import FILE, read_lora, write
from booth.models.lora_layouts import kohya_key, parsed, peft_key
from booth.models.lora_metadata import About
from booth.models.new_tokens import ROWS, keep_embeddings, spoken
from booth.models.open import open_pipeline

QUERY = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
CONV = "unet.up_blocks.0.resnets.0.conv1"
TEXT = "text_encoder.text_model.encoder.layers.1.self_attn.out_proj"
MLP = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
WEIGHTS = ("unet/diffusion_pytorch_model", "text_encoder/model")
LAYERS = (QUERY, OUT, CONV, TEXT, MLP)


def low_rank(shape, rank=2, alpha=1.5, seed=0):
    generator = np.random.default_rng(seed)
    out, *rest = shape
    down = generator.normal(size=(rank, *rest)).astype(np.float32)
    return LowRank(down, generator.normal(size=(out, rank, *(1 for _ in rest[1:]))).astype(np.float32), alpha)


@pytest.fixture(scope="module")
def shapes(tiny_pipeline):
    pipeline = open_pipeline(tiny_pipeline)
    return {f"{c}.{n}": s for c in ("unet", "text_encoder") for n, s in layers(weight_shapes(pipeline, c)).items()}


@pytest.fixture
def lora(shapes):
    return {layer: low_rank(shapes[layer], seed=place) for place, layer in enumerate(LAYERS)}


def same(one, two):
    return one.keys() == two.keys() and all(
        np.array_equal(one[layer].down, two[layer].down)
        and np.array_equal(one[layer].up, two[layer].up)
        and one[layer].alpha == two[layer].alpha
        for layer in one
    )


def run(*arguments):
    return cli.main("torchbooth", list(map(str, arguments)))


def tensors(folder, component):
    return open_pipeline(folder).tensors(component)


@pytest.mark.parametrize("source", ["tiny_pipeline", "tiny_sd2_pipeline", "embedded"])
def test_underscores_can_be_undone(request, source):
    """For every layer that an adapter can have, and no two share a key."""
    pipeline = open_pipeline("embedded" if source == "embedded" else request.getfixturevalue(source))
    names = [f"{c}.{n}" for c in ("unet", "text_encoder") for n in layers(weight_shapes(pipeline, c))]
    for part in ("down", "up", "alpha"):
        keys = [kohya_key(name, part) for name in names]
        assert [parsed(key) for key in keys] == [(name, part) for name in names]
        assert len(set(keys)) == len(names) > 50
    assert [parsed(peft_key(name, "up")) for name in names] == [(name, "up") for name in names]


def test_names_are_those_of_kohyas_trainer():
    """As they are in files that it wrote; the convolutions by its conv_dim."""
    assert (
        kohya_key(OUT, "down")
        == "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0.lora_down.weight"
    )
    assert kohya_key(TEXT, "up") == "lora_te_text_model_encoder_layers_1_self_attn_out_proj.lora_up.weight"
    assert kohya_key(MLP, "alpha") == "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha"
    conv = kohya_key("unet.down_blocks.1.resnets.0.time_emb_proj", "down")
    assert conv == "lora_unet_down_blocks_1_resnets_0_time_emb_proj.lora_down.weight"


@pytest.mark.parametrize(
    ("key", "layer", "part"),
    [
        (f"{QUERY}.lora_A.weight", QUERY, "down"),
        (f"{QUERY}.lora_B.default.weight", QUERY, "up"),
        (f"{QUERY}.lora.down.weight", QUERY, "down"),
        (f"{QUERY.replace('attn1', 'attn1.processor')}_lora.up.weight", QUERY, "up"),
        (f"{OUT.removesuffix('.0').replace('attn2', 'attn2.processor')}_lora.up.weight", OUT, "up"),
        (f"{OUT.removesuffix('.0').removeprefix('unet.')}_lora.down.weight", OUT, "down"),
        (f"{CONV.replace('unet.', 'base_model.model.')}.lora_A.weight", CONV, "down"),
        (f"{CONV.replace('unet.', 'unet.base_model.model.')}.lora_B.weight", CONV, "up"),
        (f"{TEXT.replace('text_encoder.', 'base_model.model.')}.lora_A.weight", TEXT, "down"),
        (f"{TEXT.replace('text_model.', '')}.lora_A.weight", TEXT, "down"),
        (f"{TEXT.replace('out_proj', 'to_out_lora')}.down.weight", TEXT, "down"),
        (f"{TEXT}.lora_linear_layer.up.weight", TEXT, "up"),
        (f"{MLP}.lora_linear_layer.down.weight", MLP, "down"),
        (f"{MLP}.alpha", MLP, "alpha"),
        (kohya_key(TEXT, "up").replace("lora_te_", "lora_te1_"), TEXT, "up"),
    ],
)
def test_keys_of_others(key, layer, part):
    assert parsed(key) == (layer, part)


@pytest.mark.parametrize("alphas", [(2.0, 2.0), (1.0, 8.0), (1.5, 0.1), (0.7, 8.0), (-1.5, 0.0)])
@pytest.mark.parametrize("layouts", [("peft", "kohya"), ("kohya", "peft")])
def test_there_and_back(lora, tmp_path, alphas, layouts):
    """The same alphas and tensors, whether all are the same or not; to the bit where alpha / rank is a power of two,
    which is put into B in PEFT's layout."""
    lora = {k: LowRank(u.down, u.up, alphas[place % 2]) for place, (k, u) in enumerate(sorted(lora.items()))}
    first, middle, last = (tmp_path / f"{name}.safetensors" for name in ("first", "middle", "last"))
    write(first, lora, layouts[0], "source", About("first", "first"))
    assert run("export", "--from", first, "--format", layouts[1], "--out", middle) == 0
    assert run("export", "--from", middle, "--format", layouts[0], "--out", last) == 0
    assert load_file(first).keys() == load_file(last).keys() and not load_file(first).keys() & load_file(middle).keys()
    if layouts[0] == "peft":
        assert read_lora(first).metadata == read_lora(last).metadata
    tolerance = 0 if all(math.log2(alpha).is_integer() for alpha in alphas if alpha > 0) and min(alphas) > 0 else 3e-7
    for file in (first, middle, last):
        found = read_lora(file).layers
        assert found.keys() == lora.keys()
        for layer, update in found.items():
            assert update.alpha == lora[layer].alpha and np.array_equal(update.down, lora[layer].down)
            np.testing.assert_allclose(update.up, lora[layer].up, rtol=tolerance, atol=0)


@pytest.mark.parametrize("source", ["F32", "F16"])
@pytest.mark.parametrize("precision", ["source", "fp16", "bf16", "fp32"])
def test_who_takes_the_rank_for_alpha_is_right(lora, tmp_path, source, precision):
    """As diffusers before 0.35 does, and every program that reads PEFT's layout without its header."""
    alphas = (1.0, 0.3, 16.0, 2.0, 3.0)
    kind = np.float16 if source == "F16" else np.float32
    layers = zip(lora.items(), alphas, strict=True)
    lora = {layer: LowRank(u.down.astype(kind), u.up.astype(kind), alpha) for (layer, u), alpha in layers}
    write(tmp_path / "a.safetensors", lora, "peft", precision, About("", ""))
    content = load_file(tmp_path / "a.safetensors")
    rounded = {"source": 1e-6, "fp32": 1e-6, "fp16": 2e-3, "bf16": 2e-2}[precision]
    for layer, update in lora.items():
        bare = LowRank(content[peft_key(layer, "down")], content[peft_key(layer, "up")], update.rank)
        np.testing.assert_allclose(bare.delta(), update.delta(), rtol=0, atol=rounded * np.abs(update.delta()).max())
        if precision == "source":
            exact = source == "F32" or math.log2(update.alpha).is_integer()
            assert bare.down.dtype == kind and bare.up.dtype == (kind if exact else np.float32), "nothing is rounded"
    said = json.loads(read_lora(tmp_path / "a.safetensors").metadata["lora_adapter_metadata"])
    assert said["unet.lora_alpha"] == said["unet.r"] == 2
    assert said["unet.alpha_pattern"] == said["unet.rank_pattern"] == {}, "older versions of diffusers look for them"


def test_another_alpha():
    up, down = np.full((3, 2), 6e4, np.float16), np.ones((2, 3), np.float16)
    update = LowRank(down, up, 4.0)
    assert update.with_alpha(8.0).up.dtype == np.float16 and update.with_alpha(2.0).up.dtype == np.float32
    assert np.array_equal(update.with_alpha(2.0).up, 2 * up.astype(np.float32)), "half precision cannot hold it"
    for other in (update.with_alpha(0.0), update.with_alpha(1e-38), update.with_alpha(4.0)):
        assert other is update
    wide = LowRank(down, up.astype(np.float64) / 3, 4.0).with_alpha(3.0)
    assert wide.up.dtype == np.float64 and np.array_equal(wide.delta(), LowRank(down, wide.up, 3.0).delta())


def test_a_file_without_alphas_beside_the_rank_says_nothing_more(lora, tmp_path):
    """As it was written before alphas were put into B, to the byte."""
    lora = {layer: LowRank(update.down, update.up, float(update.rank)) for layer, update in lora.items()}
    write(tmp_path / "a.safetensors", lora, "peft", "source", About("", ""))
    assert read_lora(tmp_path / "a.safetensors").metadata.keys() == {"format", "lora_adapter_metadata"}
    content = load_file(tmp_path / "a.safetensors")
    assert all(np.array_equal(content[peft_key(layer, "up")], update.up) for layer, update in lora.items())


@pytest.mark.parametrize("broken", ["[1", '{"unet.lora_alpha": "x"}', '{"unet.lora_alpha": NaN}', "[[[]]]"])
def test_broken_settings_of_before(lora, tmp_path, broken):
    write(tmp_path / "a.safetensors", lora, "peft", "source", About("", ""))
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", {"booth_before_folding": broken})
    with pytest.raises(UserError, match="download it again") as caught:
        read_lora(tmp_path / "b.safetensors")
    assert str(tmp_path / "b.safetensors") in str(caught.value)


ENDS = ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2")


@pytest.mark.parametrize("source", ["tiny_pipeline", "tiny_sd2_pipeline", "embedded"])
def test_all_layers_are_those_that_kohyas_scripts_adapt(request, source, tiny_config):
    pipeline = open_pipeline("embedded" if source == "embedded" else request.getfixturevalue(source))
    tiny_config.adapter.kind, tiny_config.adapter.targets, tiny_config.train.text_encoder = "lora", "all", True
    ours = adapters.adapter_of(tiny_config, pipeline).shapes
    every = {f"{c}.{n}" for c in ("unet", "text_encoder") for n in layers(weight_shapes(pipeline, c))}
    assert every - ours.keys() == {f"unet.{name}" for name in ENDS}
    parts = ("time_emb_proj", "conv1", "conv2", "proj_in", "to_q", "fc1", "q_proj", "downsamplers.0.conv")
    assert all(any(name.endswith(part) for name in ours) for part in parts)


def test_layers_that_not_all_programs_read_are_said(lora, shapes, tmp_path, capsys):
    """Of a rule of one's own, and of older files: what drops them, in one line."""
    assert not adapters.said_of_unusual(lora)
    strange = {f"unet.{name}": low_rank(shapes[f"unet.{name}"]) for name in ENDS}
    line = adapters.said_of_unusual(lora | strange)
    assert line.startswith(
        "adapters of unet.conv_in, unet.conv_out, unet.time_embedding.linear_1, unet.time_embedding."
    )
    assert "kohya's scripts and stable-diffusion.cpp ignore these in a LoRA file" in line and "\n" not in line
    write(tmp_path / "a.safetensors", lora | strange, "peft", "source", About("", ""))
    assert (
        run("export", "--from", tmp_path / "a.safetensors", "--format", "kohya", "--out", tmp_path / "b.safetensors")
        == 0
    )
    assert capsys.readouterr().err.splitlines().count(line) == 1
    assert same(read_lora(tmp_path / "b.safetensors").layers, read_lora(tmp_path / "a.safetensors").layers)


@pytest.mark.parametrize(("precision", "code"), [("fp16", "F16"), ("bf16", "BF16"), ("fp32", "F32")])
def test_precision(lora, tmp_path, precision, code):
    """Of the matrices; the alphas stay exact, and a file in half precision stays so."""
    write(tmp_path / "a.safetensors", lora, "kohya", precision, About("a", "A"))
    assert (
        run("export", "--from", tmp_path / "a.safetensors", "--format", "kohya", "--out", tmp_path / "b.safetensors")
        == 0
    )
    with safe_open(tmp_path / "b.safetensors", framework="np") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys() if "lora_" in key.partition(".")[2]} == {code}  # noqa: SIM118
    assert {update.alpha for update in read_lora(tmp_path / "b.safetensors").layers.values()} == {1.5}


def test_what_webuis_read(lora, tmp_path):
    about = About("saya", "Saya", "sd2", "v", 768, "stable-diffusion-2-1", "a photo of sks girl, portrait")
    write(tmp_path / "saya.safetensors", lora, "kohya", "source", about)
    said = read_lora(tmp_path / "saya.safetensors").metadata
    wanted = {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "1.5",
        "ss_network_args": '{"conv_dim": "2", "conv_alpha": "1.5"}',
        "ss_output_name": "saya",
        "ss_sd_model_name": "stable-diffusion-2-1",
        "ss_v2": "True",
        "ss_base_model_version": "sd_v2_v",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v2-768-v/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "Saya",
        "modelspec.resolution": "768x768",
        "modelspec.prediction_type": "v",
        "modelspec.trigger_phrase": "a photo of sks girl, portrait",
    }
    assert {key: said.get(key) for key in wanted} == wanted
    assert json.loads(said["ss_tag_frequency"]) == {"instance": {"a photo of sks girl": 1, "portrait": 1}}
    # What a file says is kept when it is written anew; what nobody knows is not said.
    other = tmp_path / "other.safetensors"
    assert (
        run(
            "export",
            "--from",
            tmp_path / "saya.safetensors",
            "--format",
            "kohya",
            "--trigger-phrase",
            "zwx",
            "--out",
            other,
        )
        == 0
    )
    again = read_lora(other).metadata
    assert again["ss_v2"] == "True" and again["ss_output_name"] == "other" and again["modelspec.title"] == "Saya"
    assert (
        again["modelspec.trigger_phrase"] == "zwx" and again["modelspec.hash_sha256"] == said["modelspec.hash_sha256"]
    )
    write(tmp_path / "bare.safetensors", lora, "kohya", "source", About("bare", "bare"))
    assert (
        not {"ss_v2", "ss_base_model_version", "modelspec.architecture"}
        & read_lora(tmp_path / "bare.safetensors").metadata.keys()
    )


@pytest.mark.parametrize(("width", "second"), [(768, "False"), (1024, "True")])
def test_the_family_of_a_file(tmp_path, width, second):
    """By the width of the context that its cross-attention takes."""
    lora = {OUT.replace("to_out.0", "to_k"): low_rank((8, width))}
    write(tmp_path / "a.safetensors", lora, "peft", "source", About("", ""))
    assert (
        run("export", "--from", tmp_path / "a.safetensors", "--format", "kohya", "--out", tmp_path / "b.safetensors")
        == 0
    )
    assert read_lora(tmp_path / "b.safetensors").metadata["ss_v2"] == second


@pytest.mark.parametrize("said", [{"modelspec.prediction_type": "v"}, {"ss_base_model_version": "sd_v2_v"}])
def test_a_converted_file_says_what_it_said(said, tmp_path):
    layers = {
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k": low_rank((32, 1024)),
        CONV: low_rank((8, 8, 3, 3), alpha=1.0),
    }
    write(tmp_path / "a.safetensors", layers, "kohya", "source", About("a", "a"))
    before = {
        "modelspec.date": "2023-01-02T03:04:05Z",
        "ss_network_args": '{"dropout": "0.1", "conv_dim": "9"}',
        **said,
    }
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", before)
    assert (
        run("export", "--from", tmp_path / "b.safetensors", "--format", "kohya", "--out", tmp_path / "c.safetensors")
        == 0
    )
    after = read_lora(tmp_path / "c.safetensors").metadata
    assert after["modelspec.prediction_type"] == "v" and after["ss_base_model_version"] == "sd_v2_v"
    assert after["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"
    assert after["modelspec.date"] == before["modelspec.date"]
    assert json.loads(after["ss_network_args"]) == {"dropout": "0.1", "conv_dim": "2", "conv_alpha": "1.0"}
    broken = {"ss_network_args": "[1", "modelspec.prediction_type": "x0"}
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "d.safetensors", broken)
    assert (
        run("export", "--from", tmp_path / "d.safetensors", "--format", "kohya", "--out", tmp_path / "e.safetensors")
        == 0
    )
    assert json.loads(read_lora(tmp_path / "e.safetensors").metadata["ss_network_args"])["conv_dim"] == "2"


def test_alphas_of_peft_alone(lora, tmp_path):
    """They are in the config beside the file; rank-stabilized ones are over the root of the rank."""
    file = tmp_path / "adapter_model.safetensors"
    content = {}
    for layer, update in lora.items():
        name = "base_model.model." + layer.partition(".")[2]
        content |= {f"{name}.lora_A.weight": update.down, f"{name}.lora_B.weight": update.up}
    save_file(content, file)
    with pytest.raises(UserError, match=r"whose alpha is in adapter_config\.json; put that file beside it"):
        read_lora(file)
    config = {"r": 2, "lora_alpha": 4, "alpha_pattern": {"fc1": 6}, "use_rslora": False}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    wanted = {layer: LowRank(u.down, u.up, 6.0 if layer == MLP else 4.0) for layer, u in lora.items()}
    assert same(read_lora(file).layers, wanted)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True}))
    assert read_lora(file).layers[QUERY].alpha == 4 * math.sqrt(2)


def test_without_alphas_they_are_the_ranks(lora, tmp_path):
    content = {peft_key(layer, "down"): update.down for layer, update in lora.items()}
    content |= {peft_key(layer, "up"): update.up for layer, update in lora.items()}
    save_file(content, tmp_path / "a.safetensors")
    assert {update.alpha for update in read_lora(tmp_path / "a.safetensors").layers.values()} == {2.0}


def test_several_are_added(lora, shapes, tiny_pipeline, tmp_path):
    """Each with its weight, by the formula; nothing else of the pipeline changes, and the record names them."""
    second = {layer: low_rank(shapes[layer], rank=3, alpha=9.0, seed=9) for layer in (QUERY, CONV)}
    write(tmp_path / "one.safetensors", lora, "kohya", "source", About("one", "one"))
    write(tmp_path / "two.safetensors", second, "peft", "source", About("", ""))
    out = tmp_path / "merged"
    files = [part for name in ("one", "two") for part in ("--lora", tmp_path / f"{name}.safetensors")]
    command = ("merge", "--from", tiny_pipeline, *files, "--weight", 0.5, "--weight", -2)
    assert run(*command, "--out", out) == 0
    for component in ("unet", "text_encoder", "vae"):
        before, after = tensors(tiny_pipeline, component), tensors(out, component)
        assert before.keys() == after.keys()
        for name, array in before.items():
            layer = f"{component}.{name.removesuffix('.weight')}"
            wanted = array.astype(np.float64)
            for weight, update in ((0.5, lora.get(layer)), (-2, second.get(layer))):
                if update and name.endswith(".weight"):
                    product = update.up.reshape(len(update.up), -1) @ update.down.reshape(update.rank, -1)
                    wanted = wanted + weight * update.alpha / update.rank * product.reshape(array.shape)
            if layer in lora:
                np.testing.assert_allclose(after[name], wanted, rtol=1e-5, atol=1e-5)
            else:
                assert np.array_equal(after[name], array), name
    record = json.loads((out / "export.json").read_text(encoding="utf-8"))
    assert [(entry["file"], entry["weight"]) for entry in record["merged"]] == [
        ("one.safetensors", 0.5),
        ("two.safetensors", -2),
    ]
    assert record["step"] is None and record["trained"] == []
    assert {record["changed_files"][f"{name}.safetensors"] for name in WEIGHTS} == {"with LoRA"}
    assert run(*command, "--precision", "fp16", "--out", out) == 0, "an earlier one is replaced"


def test_linear_layers_as_pointwise_convolutions(tiny_pipeline, shapes, tmp_path):
    """Some trainers write one for the other."""
    layer = "unet.mid_block.attentions.0.proj_in"
    assert shapes[layer][2:] == (1, 1)
    update = low_rank(shapes[layer][:2])
    write(tmp_path / "a.safetensors", {layer: update}, "kohya", "source", About("a", "a"))
    assert run("merge", "--from", tiny_pipeline, "--lora", tmp_path / "a.safetensors", "--out", tmp_path / "out") == 0
    name = "mid_block.attentions.0.proj_in.weight"
    moved = tensors(tmp_path / "out", "unet")[name] - tensors(tiny_pipeline, "unet")[name]
    np.testing.assert_allclose(moved[..., 0, 0], 0.75 * update.up @ update.down, atol=1e-5)


@pytest.fixture
def refusal(capsys):
    def refusal(*arguments):
        capsys.readouterr()
        assert run(*arguments) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1, said.err
        return said.err.removeprefix("torchbooth: error: ").rstrip("\n")

    return refusal


def test_loras_of_other_models(lora, shapes, tiny_pipeline, tiny_sd2_pipeline, tmp_path, refusal):
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    second = {key: low_rank((shapes[key][0], shapes[key][1] + 32))}
    write(tmp_path / "wide.safetensors", second, "kohya", "source", About("a", "a"))
    said = refusal("merge", "--from", tiny_pipeline, "--lora", tmp_path / "wide.safetensors", "--out", tmp_path / "out")
    assert f"does not fit {tiny_pipeline}, Stable Diffusion 1.x: {key} [" in said and "instead of [" in said
    write(
        tmp_path / "deep.safetensors",
        {CONV.replace("blocks.0", "blocks.7"): lora[CONV]},
        "kohya",
        "source",
        About("a", "a"),
    )
    said = refusal("merge", "--from", tiny_pipeline, "--lora", tmp_path / "deep.safetensors", "--out", tmp_path / "out")
    assert "which has no unet.up_blocks.7.resnets.0.conv1; give a LoRA that was trained from such a model" in said
    export_single_file.write(open_pipeline(tiny_pipeline), tmp_path / "tiny.safetensors")
    single = ("merge", "--from", tmp_path / "tiny.safetensors", "--model-config", tiny_pipeline)
    said = refusal(*single, "--lora", tmp_path / "deep.safetensors", "--out", tmp_path / "out")
    assert f"does not fit {tmp_path / 'tiny.safetensors'}, Stable Diffusion 1.x" in said, "not its configs"
    assert not (tmp_path / "out").exists()


def down(name="lora_unet_conv_in"):
    return {f"{name}.lora_down.weight": np.ones((2, 4), np.float32)}


UP = {"lora_unet_conv_in.lora_up.weight": np.ones((8, 2), np.float32)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "is empty"),
        (down(), "unet.conv_in has no up matrix"),
        (UP, "unet.conv_in has no down matrix"),
        (down() | {k: np.ones((8, 3), np.float32) for k in UP}, r"down is \[2, 4\] and up \[8, 3\]"),
        (down() | UP | {"lora_unet_conv_in.alpha": np.array(np.nan)}, "alpha of unet.conv_in cannot be used"),
        (down() | UP | {"lora_unet_conv_in.alpha": np.ones(2, np.float32)}, "alpha of unet.conv_in cannot be used"),
        (down() | UP | {"unet.conv_in.lora_A.weight": np.ones((2, 4), np.float32)}, "two tensors for down of unet"),
        ({k: v.astype(np.int8) for k, v in (down() | UP).items()}, "has type I8, not a float type"),
        ({"conv_in.weight": np.ones((2, 2), np.float32)}, "conv_in.weight is no part of a LoRA"),
        ({"<saya>": np.ones(8, np.float32)}, "<saya> is no part of a LoRA"),
        (down() | UP | {"lora_unet_conv_in.dora_scale": np.ones(8, np.float32)}, "DoRA"),
        ({"unet.conv_in.lora_magnitude_vector": np.ones(8, np.float32)}, "DoRA"),
        ({"lora_unet_conv_in.lora_mid.weight": np.ones((2, 2, 3, 3), np.float32)}, "LoCon with a third"),
        ({"lora_unet_conv_in.hada_w1_a": np.ones((2, 2), np.float32)}, "LoHa"),
        ({"lora_unet_conv_in.lokr_w1": np.ones((2, 2), np.float32)}, "LoKr"),
        ({"lora_unet_conv_in.diff": np.ones((2, 2), np.float32)}, "whole differences"),
        (down("lora_te2_text_model_encoder_layers_0_mlp_fc1"), "Stable Diffusion XL"),
        (down("lora_unet_input_blocks_1_1_proj_in"), "numbered as in LoRAs of Stable Diffusion XL"),
        (down("transformer.blocks.0.to_q"), "Stable Diffusion 3 or FLUX"),
    ],
)  # fmt: skip
def test_what_is_no_plain_lora(content, said, tmp_path, refusal):
    file = tmp_path / "a.safetensors"
    save_file(content, file)
    with pytest.raises(UserError, match=said):
        read_lora(file)
    line = refusal("export", "--from", file, "--format", "peft", "--out", tmp_path / "b.safetensors")
    assert str(file) in line and not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize(
    "metadata",
    ["no JSON", "[1]", '{"unet.lora_alpha": "many"}', '{"unet.lora_alpha": NaN}', '{"unet.alpha_pattern": [3]}',
     '{"unet.alpha_pattern": {"conv_in": {}}}', '{"unet.use_dora": true}', "[" * 100_000],
)  # fmt: skip
def test_broken_settings(metadata, tmp_path):
    content = {
        "unet.conv_in.lora_A.weight": np.ones((2, 4), np.float32),
        "unet.conv_in.lora_B.weight": np.ones((8, 2), np.float32),
    }
    save_file(content, tmp_path / "a.safetensors", {"lora_adapter_metadata": metadata})
    with pytest.raises(UserError, match=r"cannot be used|is broken"):
        read_lora(tmp_path / "a.safetensors")


def test_broken_files(lora, tmp_path, refusal):
    """Cut anywhere, or with other bytes in the header: one line, or it is a LoRA all the same."""
    good = tmp_path / "good.safetensors"
    write(good, lora, "kohya", "source", About("a", "a"))
    content, generator = good.read_bytes(), np.random.default_rng(0)
    bad = tmp_path / "bad.safetensors"
    for length in generator.integers(0, len(content) - 1, 20):
        bad.write_bytes(content[:length])
        with pytest.raises(UserError, match="truncated or broken"):
            read_lora(bad)
    assert "truncated or broken" in refusal("merge", "--from", "embedded", "--lora", bad, "--out", tmp_path / "x")
    refused = 0
    for _ in range(60):
        changed = bytearray(content)
        for place in generator.integers(0, 8 + int.from_bytes(content[:8], "little"), 3):
            changed[place] = generator.integers(32, 127)
        bad.write_bytes(changed)
        try:
            read_lora(bad)
        except UserError as error:
            refused += "\n" not in str(error)
    assert refused > 20


EXPORT, MERGE = "export --from a.safetensors --format", "merge --from embedded --lora a.safetensors --out"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("export --from none.safetensors --format kohya --out b.safetensors", "none.safetensors: no such file"),
        ("export --from a.pt --format kohya --out b.safetensors", "`torchbooth convert a.pt --out a.safetensors`"),
        ("export --from a.safetensors --out b", "is a LoRA file, no model; give the checkpoint that it is for"),
        ("export --run none --format kohya --out b.safetensors", "none is not a run folder"),
        ("export --format kohya --out b.safetensors", "one of the arguments --run --from is required"),
        (f"{EXPORT} lycoris --out b.safetensors", "invalid choice: 'lycoris'"),
        (f"{EXPORT} kohya --out b.pt", "--out b.pt must end with .safetensors"),
        (f"{EXPORT} kohya --out a.safetensors", "a.safetensors exists"),
        (f"{EXPORT} kohya --step 1 --out b.safetensors", "--step names a checkpoint of --run"),
        (f"{EXPORT} kohya --verify --out b.safetensors", "--verify does not apply to --from with a LoRA file; leave"),
        (f"{EXPORT} peft --revision abc --out b.safetensors", "--revision does not apply to --from with a LoRA file"),
        (
            f"{EXPORT} kohya --model-config X --out b.safetensors",
            "--model-config does not apply to --from with a LoRA file",
        ),
        ("export --run r --format kohya --model-config X --out b.safetensors", "--model-config belongs to --from"),
        (f"{EXPORT} embedding --out b.safetensors", "--format embedding is for the new tokens of --run"),
        ("export --from run --format kohya --out b.safetensors", "--from run is a run folder; give it with --run"),
        (
            "sample --model run/lora --prompt a --out b",
            "run/lora is a LoRA folder, not a pipeline; give a pipeline, give --run RUN",
        ),
        (f"{EXPORT} peft --title A --out b.safetensors", "are only for kohya files"),
        (f"{EXPORT} peft --run r --out b.safetensors", "not allowed with"),
        ("merge --from embedded --lora none.safetensors --out b", "none.safetensors: no such file"),
        ("merge --from none --lora a.safetensors --out b", "none: no such folder"),
        (f"{MERGE} full", "it holds other files"),
        (f"{MERGE} b --weight nan", "must be a finite number"),
        (f"{MERGE} b --weight 1 --weight 1", "--weight is given 2 times and --lora 1"),
        (f"{MERGE} b --weight much", "invalid float value"),
    ],
)
def test_what_cannot_work(lora, command, said, tmp_path, monkeypatch, refusal):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.safetensors", lora, "kohya", "source", About("a", "a"))
    (tmp_path / "a.pt").write_bytes(b"pickle")
    (tmp_path / "run" / "lora").mkdir(parents=True)
    (tmp_path / "run" / "config.json").touch()
    write(tmp_path / "run" / "lora" / FILE, lora, "peft", "source", About("a", "a"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.png").touch()
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert said in refusal(*command.split())
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_full_disk(lora, tiny_pipeline, tmp_path, monkeypatch, refusal):
    write(tmp_path / "a.safetensors", lora, "kohya", "source", About("a", "a"))
    monkeypatch.setattr(disk_space, "free", lambda folder: 100)
    said = refusal(
        "export", "--from", tmp_path / "a.safetensors", "--format", "peft", "--out", tmp_path / "b.safetensors"
    )
    assert "(the LoRA " in said and "0.1 KB are free; make room, or choose another --out" in said
    said = refusal("merge", "--from", tiny_pipeline, "--lora", tmp_path / "a.safetensors", "--out", tmp_path / "b")
    assert "(the pipeline " in said
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_embeddings_are_read_everywhere(tmp_path):
    """One tensor, [width], under the token: diffusers takes the key for the word, WebUIs the file's name.

    AUTOMATIC1111 and ComfyUI take the only tensor of a file whatever its key; InvokeAI knows the model by its width.
    """
    rows = np.arange(16, dtype=np.float32).reshape(2, 8)
    list(keep_embeddings(tmp_path, ["<saya>", "<its_colour>"], [("text_encoder", ROWS, rows)]))
    for name, token, row in zip(("saya", "its_colour"), ("<saya>", "<its_colour>"), rows, strict=True):
        content = load_file(tmp_path / f"{name}.safetensors")
        assert list(content) == [token] and content[token].shape == (8,) and np.array_equal(content[token], row)


def test_what_a_run_is_prompted_with(tiny_config):
    config = tiny_config
    config.instance.prompt = "a photo of <saya_token>, {caption}"
    config.tokens.add = ("<saya_token>=girl",)
    assert spoken_prompt(config) == "a photo of saya_token"
    assert spoken_prompt(config, "out-") == "a photo of out-saya_token", "as the file beside an exported one is named"
    assert spoken("<a> beside a <b>", ["a", "<a>", "<b>"]) == "2-a beside 1-a b"
    config.tokens.add = ()
    config.concepts = ({"instance.prompt": "a photo of sks dog"}, {"instance.prompt": "a photo of zwx cat"})
    assert spoken_prompt(config) == "a photo of sks dog, a photo of zwx cat"

"""LoRA files of both layouts in diffusers: the same tensors, and merging gives what `fuse_lora` gives."""

import re

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft.utils import get_peft_model_state_dict
from transformers import CLIPTextConfig, CLIPTextModel

from booth.commands import cli
from booth.models.adapters import PRESETS, LowRank, added, layers, weight_shapes
from booth.models.lora_file import read_lora, write
from booth.models.lora_layouts import kohya_key, parsed
from booth.models.lora_metadata import About
from booth.models.open import open_pipeline
from booth.models.weight_names import canonical_name

WEIGHT = 0.8
LAYOUTS = ("kohya", "peft")


def random_lora(pipeline, layout):
    """Of every linear and convolutional layer, with ranks that differ; and alphas, where diffusers can have them: of a
    file of kohya's it takes one for all layers of a network."""
    generator = np.random.default_rng(0)
    lora = {}
    for component in ("unet", "text_encoder"):
        shapes = layers(weight_shapes(pipeline, component))
        for place, (name, (out, *rest)) in enumerate(shapes.items()):
            rank, alpha = (2, 3.0) if place % 5 else (3, 3.0 if layout == "kohya" else 0.1)
            down = generator.normal(size=(rank, *rest)).astype(np.float32)
            up = generator.normal(size=(out, rank, *(1 for _ in rest[1:]))).astype(np.float32)
            lora[f"{component}.{name}"] = LowRank(down / 10, up / 10, alpha)
    return lora


@pytest.fixture(scope="module", params=["tiny_pipeline", "tiny_sd2_pipeline"])
def written(request, tmp_path_factory):
    """(folder of the pipeline, {layout: LoRA}, {layout: its file})."""
    source = request.getfixturevalue(request.param)
    folder = tmp_path_factory.mktemp("lora")
    loras = {layout: random_lora(open_pipeline(source), layout) for layout in LAYOUTS}
    files = {layout: folder / layout / "subject.safetensors" for layout in LAYOUTS}
    for layout, lora in loras.items():
        write(files[layout], lora, layout, "source", About("subject", "Subject"))
    return source, loras, files


def loaded(source, file=None):
    pipe = StableDiffusionPipeline.from_pretrained(source, safety_checker=None)
    if file:
        pipe.load_lora_weights(file.parent, weight_name=file.name)
    return pipe


def weights(network):
    """By name, as adapters that are no longer there left them; with `text_model.`, which not all versions have."""
    named = {name.replace(".base_layer.", "."): value for name, value in network.state_dict().items()}
    bare = ("embeddings.", "encoder.", "final_layer_norm.")
    return {f"text_model.{n}" if n.startswith(bare) else n: v.numpy() for n, v in named.items() if ".lora_" not in n}


def distance(ours, theirs, before):
    """Of two sets of weights, over how far the first has moved."""
    assert ours.keys() == theirs.keys() == before.keys()
    ours, theirs, before = (np.concatenate([s[name].ravel() for name in sorted(s)]) for s in (ours, theirs, before))
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs - before)


def output(pipe):
    with torch.no_grad():
        context = pipe.text_encoder(torch.arange(77)[None] % 100)[0]
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        return pipe.unet(latents, torch.tensor([300]), context)[0].numpy()


def test_names_of_the_full_size():
    """Stable Diffusion 1.5's, each undone; of what kohya's trainer adapts by default a file has 72 and 192 layers."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, num_hidden_layers=12, num_attention_heads=12))
    found = {"unet": unet.state_dict(), "text_encoder": text.state_dict()}
    named = {c: {canonical_name(c, key): value.shape for key, value in state.items()} for c, state in found.items()}
    names = [f"{component}.{name}" for component, shapes in named.items() for name in layers(shapes)]
    keys = [kohya_key(name, "down") for name in names]
    assert [parsed(key) for key in keys] == [(name, "down") for name in names] and len(set(keys)) == len(names)
    usual = (
        r"lora_unet_\w+_attentions_\d_(proj_in|proj_out|transformer_blocks_0_(attn[12]_to_\w+|ff_net_(0_proj|2)))\..*"
    )
    assert sum(re.fullmatch(usual, key) is not None for key in keys) == 192
    assert sum(key.startswith("lora_te_text_model_encoder_layers_") for key in keys) == 72
    everything = [name for name in names if re.fullmatch(PRESETS["all"], name)]
    assert sum(name.startswith("unet.") for name in everything) == 278, "as it counts them with conv_dim"
    assert len(everything) == 278 + 72


@pytest.mark.parametrize("layout", LAYOUTS)
def test_diffusers_loads_every_tensor(written, layout):
    """Each in its layer, and counting as it says: to the bit and with its alpha in kohya's layout, which diffusers'
    own has in B."""
    source, loras, files = written
    pipe, lora = loaded(source, files[layout]), loras[layout]
    found = {}
    for component in ("unet", "text_encoder"):
        for name, module in getattr(pipe, component).named_modules():
            if hasattr(module, "lora_A") and module.lora_A:
                name = (
                    f"text_model.{name}" if component == "text_encoder" and not name.startswith("text_model.") else name
                )
                (adapter,) = module.lora_A
                a, b = (part[adapter].weight.detach().numpy() for part in (module.lora_A, module.lora_B))
                found[f"{component}.{name}"] = a, b, module.scaling[adapter]
    assert found.keys() == lora.keys()
    for layer, (a, b, scale) in found.items():
        wanted = lora[layer].with_alpha(lora[layer].rank) if layout == "peft" else lora[layer]
        assert np.array_equal(a, wanted.down) and np.array_equal(b, wanted.up), layer
        assert scale == pytest.approx(wanted.alpha / wanted.rank, rel=1e-6), layer


@pytest.mark.parametrize("layout", LAYOUTS)
def test_merging_equals_fusing(written, layout, tmp_path):
    """Weights within 1e-6 of how far they move, the UNet's output within 1e-5."""
    source, _, files = written
    command = ["merge", "--from", source, "--lora", files[layout], "--weight", WEIGHT, "--out", tmp_path / "merged"]
    assert cli.main("torchbooth", list(map(str, command))) == 0
    plain, fused, ours = loaded(source), loaded(source, files[layout]), loaded(tmp_path / "merged")
    fused.fuse_lora(lora_scale=WEIGHT)
    for component in ("unet", "text_encoder"):
        before, theirs, merged = (weights(getattr(pipe, component)) for pipe in (plain, fused, ours))
        assert distance(merged, theirs, before) < 1e-6
    before, theirs, merged = (output(pipe) for pipe in (plain, fused, ours))
    assert np.linalg.norm(merged - theirs) < 1e-5 * np.linalg.norm(theirs - before)
    assert np.linalg.norm(theirs - before) > 1e-2 * np.linalg.norm(before)


def test_the_measure_sees_what_is_wrong(written):
    """A weight that is off by a thousandth, an alpha that is taken for the rank, one layer of another."""
    source, loras, files = written
    pipeline, plain, fused = open_pipeline(source), loaded(source), loaded(source, files["peft"])
    lora = loras["peft"]
    fused.fuse_lora(lora_scale=WEIGHT)
    before, theirs = weights(plain.unet), weights(fused.unet)
    swapped = dict(lora)
    query, key = (f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_{name}" for name in "qk")
    swapped[query], swapped[key] = lora[key], lora[query]
    mutants = [
        (lora, WEIGHT * 1.001),
        ({layer: LowRank(update.down, update.up, update.rank) for layer, update in lora.items()}, WEIGHT),
        (swapped, WEIGHT),
    ]
    for mutant, weight in mutants:
        merged = {n: a for c, n, a in added(pipeline, {k: [(v, weight)] for k, v in mutant.items()}) if c == "unet"}
        assert distance(merged, theirs, before) > 1e-4


def test_what_diffusers_writes_is_read(written, tmp_path):
    """`save_lora_weights`: the same layers and alphas."""
    source, loras, files = written
    pipe, theirs = loaded(source, files["kohya"]), tmp_path / "theirs"  # of which it keeps the alphas
    states = {
        name: convert_state_dict_to_diffusers(get_peft_model_state_dict(getattr(pipe, name), adapter_name="default_0"))
        for name in ("unet", "text_encoder")
    }
    StableDiffusionPipeline.save_lora_weights(
        theirs, states["unet"], states["text_encoder"],
        unet_lora_adapter_metadata=pipe.unet.peft_config["default_0"].to_dict(),
        text_encoder_lora_adapter_metadata=pipe.text_encoder.peft_config["default_0"].to_dict(),
    )  # fmt: skip
    ours, again = loras["kohya"], read_lora(theirs).layers
    assert again.keys() == ours.keys()
    for layer, update in again.items():
        assert update.alpha == pytest.approx(ours[layer].alpha, rel=1e-6), layer
        assert np.array_equal(update.down, ours[layer].down) and np.array_equal(update.up, ours[layer].up)

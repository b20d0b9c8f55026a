"""The weights mapping by itself, and what the models refuse; neither needs torch."""

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from booth.common.errors import UserError
from jaxbooth.models.clip import CLIPTextModel
from jaxbooth.models.layers import Conv, Embedding, GroupNorm, Linear
from jaxbooth.models.unet import UNet2DConditionModel
from jaxbooth.models.vae import AutoencoderKL
from jaxbooth.weights import Network, from_diffusers, to_diffusers


class EveryLeaf(nnx.Module):
    """One layer of each kind, one of them in a list."""

    def __init__(self, config: Any, *, dtype: Any):
        self.convs = nnx.List([None, Conv(2, 3, dtype=dtype)])
        self.norm = GroupNorm(1, 3, eps=1e-5, dtype=dtype)
        self.linear = Linear(3, 4, dtype=dtype)
        self.table = Embedding(5, 4, dtype=dtype)

    def __call__(self, x_bhwc: jax.Array, ids_b: jax.Array) -> jax.Array:
        return self.linear(self.norm(self.convs[1](x_bhwc))) + self.table(ids_b)[:, None, None, :]


DIFFUSERS_SHAPES = {
    "convs.1.weight": (3, 2, 3, 3),
    "convs.1.bias": (3,),
    "norm.weight": (3,),
    "norm.bias": (3,),
    "linear.weight": (4, 3),
    "linear.bias": (4,),
    "table.weight": (5, 4),
}


@pytest.fixture(scope="module")
def network() -> Network:
    return Network.build(EveryLeaf, {})


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in DIFFUSERS_SHAPES.items()}


def test_layout_of_every_leaf(network: Network, tensors: dict[str, np.ndarray]) -> None:
    params = from_diffusers(network, tensors, "test")
    assert {name: array.shape for name, array in params.items()} == {
        "convs.1.weight": (3, 3, 2, 3),
        "convs.1.bias": (3,),
        "norm.weight": (3,),
        "norm.bias": (3,),
        "linear.weight": (3, 4),
        "linear.bias": (4,),
        "table.weight": (5, 4),
    }
    assert {name: shape.shape for name, shape in network.shapes.items()} == {
        name: array.shape for name, array in params.items()
    }
    kernel, weight = params["convs.1.weight"], tensors["convs.1.weight"]
    assert kernel[0, 2, 1, 2] == weight[2, 1, 0, 2]
    assert params["linear.weight"][2, 1] == tensors["linear.weight"][1, 2]
    assert params["table.weight"][1, 2] == tensors["table.weight"][1, 2]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_round_trip_to_the_bit(network: Network, tensors: dict[str, np.ndarray], dtype: type) -> None:
    sources = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    params = from_diffusers(network, sources, "test")
    assert {array.dtype for array in params.values()} == {np.dtype(np.float32)}
    for name, source in sources.items():
        back = to_diffusers(network, name, params[name])
        assert back.dtype == np.float32
        assert back.astype(dtype).tobytes() == source.tobytes()


def test_to_diffusers_takes_jax_arrays(network: Network, tensors: dict[str, np.ndarray]) -> None:
    params = from_diffusers(network, tensors, "test")
    for name, tensor in tensors.items():
        back = to_diffusers(network, name, jnp.asarray(params[name], jnp.bfloat16))
        np.testing.assert_array_equal(back, tensor.astype(ml_dtypes.bfloat16))


def test_1x1_convolution_where_a_linear_layer_is_expected(network: Network, tensors: dict[str, np.ndarray]) -> None:
    expected = from_diffusers(network, tensors, "test")
    older = tensors | {"linear.weight": tensors["linear.weight"][:, :, None, None]}
    np.testing.assert_equal(from_diffusers(network, older, "test"), expected)


def test_missing_and_left_over_names(network: Network, tensors: dict[str, np.ndarray]) -> None:
    tensors["linear.wieght"] = tensors.pop("linear.weight")
    with pytest.raises(UserError) as error:
        from_diffusers(network, tensors, "unet")
    message = str(error.value)
    assert message == ("unet weights do not fit its config: missing linear.weight; left over linear.wieght")


def test_many_missing_names_are_shortened(network: Network) -> None:
    with pytest.raises(UserError, match="and 3 more; left over none") as error:
        from_diffusers(network, {}, "unet")
    assert "\n" not in str(error.value)


def test_wrong_shapes_and_dtypes(network: Network, tensors: dict[str, np.ndarray]) -> None:
    tensors["linear.weight"] = tensors["linear.weight"].T
    tensors["norm.bias"] = np.zeros(3, np.int8)
    with pytest.raises(UserError) as error:
        from_diffusers(network, tensors, "unet")
    assert "linear.weight is float32[3, 4] instead of float[4, 3]" in str(error.value)
    assert "norm.bias is int8[3] instead of float[3]" in str(error.value)


def test_bind_inside_jit(network: Network, tensors: dict[str, np.ndarray]) -> None:
    """Gradients come back under the same names, and only the parameters' values are compiled in."""
    params = {name: jnp.asarray(array) for name, array in from_diffusers(network, tensors, "test").items()}
    x_bhwc, ids_b = jnp.ones((2, 4, 4, 2)), jnp.array([0, 4])
    loss = jax.jit(lambda params: network.bind(params)(x_bhwc, ids_b).sum())
    gradients = jax.grad(loss)(params)
    assert {name: g.shape for name, g in gradients.items()} == {n: s.shape for n, s in network.shapes.items()}
    np.testing.assert_array_equal(gradients["table.weight"][:, 0], [16, 0, 0, 0, 16])
    moved = params | {"linear.bias": params["linear.bias"] + 1}
    np.testing.assert_allclose(loss(moved) - loss(params), 2 * 4 * 4 * 4, rtol=1e-4)


def test_compute_dtype_and_bound_dtype(tensors: dict[str, np.ndarray]) -> None:
    """Compute follows the network, whatever dtype the parameters are kept in."""
    network = Network.build(EveryLeaf, {}, dtype=jnp.bfloat16)
    params = from_diffusers(network, tensors, "test")
    inputs = jnp.ones((1, 4, 4, 2), jnp.bfloat16), jnp.array([0])
    kept = network.bind(params)(*inputs)
    halved = network.bind({name: jnp.asarray(array, jnp.bfloat16) for name, array in params.items()})(*inputs)
    assert kept.dtype == halved.dtype == jnp.bfloat16
    np.testing.assert_allclose(kept.astype(np.float32), halved.astype(np.float32), atol=0.05)


def count_parameters(model: type[nnx.Module], config: Mapping[str, Any]) -> int:
    return sum(shape.size for shape in Network.build(model, config).shapes.values())


def test_parameter_counts_of_stable_diffusion_1_5() -> None:
    """Building the real sizes takes no memory: the figures are those of the published weights."""
    unet = {"cross_attention_dim": 768, "attention_head_dim": 8}
    vae = {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
    }
    text = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
    }
    assert count_parameters(UNet2DConditionModel, unet) == 859_520_964
    assert count_parameters(AutoencoderKL, vae) == 83_653_863
    assert count_parameters(CLIPTextModel, text) == 123_060_480


# Stable Diffusion 2.1's configs with every key that diffusers 0.8 to 0.24 and transformers 4 wrote for 2.x.
SD21_UNET = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.10.0.dev0",
    "act_fn": "silu",
    "attention_head_dim": [5, 10, 20, 20],
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 1024,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "sample_size": 96,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "use_linear_projection": True,
    "upcast_attention": True,
}
LATER_UNET_KEYS = {
    "_name_or_path": "unet",
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": None,
    "attention_type": "default",
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "dropout": 0.0,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "projection_class_embeddings_input_dim": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": 1,
    "upcast_attention": None,
}
SD21_TEXT_ENCODER = {
    "_name_or_path": "text_encoder",
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "pad_token_id": 1,
    "projection_dim": 512,
    "torch_dtype": "float32",
    "transformers_version": "4.25.0.dev0",
    "vocab_size": 49408,
}


@pytest.mark.parametrize("more", [{}, LATER_UNET_KEYS], ids=["older", "later"])
def test_parameter_count_of_stable_diffusion_2_1_unet(more: Mapping[str, Any]) -> None:
    assert count_parameters(UNet2DConditionModel, SD21_UNET | more) == 865_910_724


def test_parameter_count_of_stable_diffusion_2_1_text_encoder() -> None:
    assert count_parameters(CLIPTextModel, SD21_TEXT_ENCODER) == 340_387_840


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        (
            UNet2DConditionModel,
            {"addition_embed_type": "image"},
            "unet config: addition_embed_type='image' is not supported, only None or 'text_time' is",
        ),
        (
            UNet2DConditionModel,
            {"act_fn": "gelu"},
            "unet config: act_fn='gelu' is not supported, only 'silu' or 'swish' is",
        ),
        (
            UNet2DConditionModel,
            {"new_option": True},
            "unet config: new_option=True is not supported, only a config without new_option is",
        ),
        (UNet2DConditionModel, {"down_block_types": ["AttnDownBlock2D"] * 4}, "AttnDownBlock2D.*only 4 names"),
        (UNet2DConditionModel, {"up_block_types": ["UpBlock2D"] * 3}, "up_block_types=.*only 4 names"),
        (UNet2DConditionModel, {"attention_head_dim": [5, 10]}, "attention_head_dim=.*4 integers"),
        (UNet2DConditionModel, {"dual_cross_attention": True}, "dual_cross_attention=True .* only False is"),
        (UNet2DConditionModel, {"num_class_embeds": 1000}, "num_class_embeds=1000 .* only None is"),
        (UNet2DConditionModel, {"resnet_time_scale_shift": "scale_shift"}, "only 'default' is"),
        (UNet2DConditionModel, {"attention_head_dim": 7}, "attention_head_dim=7 .*divisors"),
        (UNet2DConditionModel, {"layers_per_block": [2, 1, 1, 2]}, r"=\[2, 1, 1, 2\] .* only a number is"),
        (UNet2DConditionModel, {"norm_num_groups": None}, "norm_num_groups=None .* only a number is"),
        (UNet2DConditionModel, {"mid_block_type": None}, "mid_block_type=None.*'UNetMidBlock2DCrossAttn'"),
        (AutoencoderKL, {"use_quant_conv": False}, "vae config: use_quant_conv=False .* only True is"),
        (AutoencoderKL, {"up_block_types": ["AttnUpDecoderBlock2D"]}, "vae config: up_block_types="),
        (CLIPTextModel, {"hidden_act": "relu"}, "text_encoder config: hidden_act='relu' .*'quick_gelu' or 'gelu'"),
        (CLIPTextModel, {"attention_dropout": 0.1}, "attention_dropout=0.1 is not supported, only 0.0 is"),
        (CLIPTextModel, {"model_type": "t5"}, "model_type='t5' is not supported, only 'clip_text_model' is"),
    ],
)
def test_unsupported_configs(model: type[nnx.Module], config: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Network.build(model, config)
    assert "\n" not in str(error.value)


def test_harmless_keys() -> None:
    Network.build(AutoencoderKL, {"_class_name": "AutoencoderKL", "sample_size": 512, "later_option": None})


def test_imports_neither_torch_nor_its_libraries() -> None:
    code = (
        "import sys, jaxbooth.weights, jaxbooth.models.clip, jaxbooth.models.unet, jaxbooth.models.vae;"
        "print(sorted({'torch', 'diffusers', 'transformers'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

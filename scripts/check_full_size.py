"""Compare jaxbooth's UNet and text encoder with diffusers' and transformers' at their real sizes, on the CPU.

    python scripts/check_full_size.py --size sd15        # two minutes on 2 cores, 10 GB of memory
    python scripts/check_full_size.py --size sd21-768    # three minutes, 16 GB
    python scripts/check_full_size.py --size sd21-512 --component text_encoder

Each model computes one forward pass with the same random float32 weights; the UNet at the size that it was trained for
(64x64 or 96x96 latents). The script prints parameter counts and the largest difference relative to the largest output.
Its exit code is 1 if a count differs from that of the published model or a difference is larger than 1e-4.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import jax
import numpy as np
import torch
import transformers
from make_pipeline import SIZES, perturb_vectors

from jaxbooth.models.clip import CLIPTextModel
from jaxbooth.models.unet import UNet2DConditionModel
from jaxbooth.weights import Network, from_diffusers

MODELS = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}
PARAMETERS = {
    "sd15": {"unet": 859_520_964, "text_encoder": 123_060_480},
    "sd21-512": {"unet": 865_910_724, "text_encoder": 340_387_840},
    "sd21-768": {"unet": 865_910_724, "text_encoder": 340_387_840},
}
TOLERANCE = 1e-4


def build_reference(component: str, config: Mapping[str, Any]) -> torch.nn.Module:
    """Return the library's own module, initialised by the library (or empty under a meta device)."""
    if component == "unet":
        return diffusers.UNet2DConditionModel.from_config(config).eval()
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**config)).eval()


def reference_config(reference: torch.nn.Module) -> dict[str, Any]:
    """Return the content of the reference's config.json."""
    config = reference.config
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)


def rename(component: str, name: str) -> str:
    """Return the name of a tensor in files: transformers 5 drops the prefix of a text encoder's tensors."""
    return f"text_model.{name.removeprefix('text_model.')}" if component == "text_encoder" else name


def draw_inputs(component: str, config: Mapping[str, Any], rng: np.random.Generator) -> list[np.ndarray]:
    """Return random inputs of jaxbooth's model for one row."""
    if component == "unet":
        latents_bhwc = rng.standard_normal(
            (1, config["sample_size"], config["sample_size"], config["in_channels"]), np.float32
        )
        return [
            latents_bhwc,
            np.array([500], np.int32),
            rng.standard_normal((1, 77, config["cross_attention_dim"]), np.float32),
        ]
    return [rng.integers(0, config["vocab_size"], (1, config["max_position_embeddings"]), np.int32)]


@torch.no_grad()
def run_reference(component: str, reference: torch.nn.Module, inputs: list[np.ndarray]) -> np.ndarray:
    """Return the reference's output for the inputs of `draw_inputs`, in jaxbooth's layout."""
    tensors = [torch.from_numpy(array) for array in inputs]
    if component == "text_encoder":
        return reference(tensors[0].long()).last_hidden_state.numpy()
    latents_bhwc, timesteps_b, context_btd = tensors
    return reference(latents_bhwc.permute(0, 3, 1, 2), timesteps_b, context_btd).sample.permute(0, 2, 3, 1).numpy()


def compare(component: str, config: Mapping[str, Any], seed: int = 0) -> tuple[int, int, float]:
    """Return the parameter counts of the reference and of jaxbooth, and the relative difference of their outputs."""
    torch.manual_seed(seed)
    reference = build_reference(component, config)
    perturb_vectors(reference)
    inputs = draw_inputs(component, config, np.random.default_rng(seed))
    start = time.perf_counter()
    expected = run_reference(component, reference, inputs)
    print(f"reference: {time.perf_counter() - start:.0f} s", flush=True)

    network = Network.build(MODELS[component], reference_config(reference))
    tensors = {rename(component, name): tensor.numpy() for name, tensor in reference.state_dict().items()}
    counts = (
        sum(tensor.size for tensor in tensors.values()),
        sum(shape.size for shape in network.shapes.values()),
    )
    params = from_diffusers(network, tensors, component)
    del reference, tensors  # keep two copies of the weights in memory, not three
    start = time.perf_counter()
    with jax.default_matmul_precision("highest"):
        predict = jax.jit(lambda params, *inputs: network.bind(params)(*inputs))
        prediction = np.asarray(predict(params, *inputs))
    print(f"jaxbooth: {time.perf_counter() - start:.0f} s with compilation")
    return *counts, float(np.abs(prediction - expected).max() / np.abs(expected).max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=PARAMETERS, default="sd15")
    parser.add_argument("--component", choices=MODELS, help="check only this component")
    parser.add_argument("--config", type=Path, help="the config.json of --component, instead of a size")
    args = parser.parse_args()
    if args.config and not args.component:
        parser.error("--config needs --component; name the component that the config is for")

    failed = False
    for component in [args.component] if args.component else MODELS:
        config = json.loads(args.config.read_text()) if args.config else SIZES[args.size][component]
        print(f"{args.config or args.size}, {component}:")
        reference_count, count, difference = compare(component, config)
        expected_count = reference_count if args.config else PARAMETERS[args.size][component]
        print(f"parameters: {count:,} (reference {reference_count:,}, expected {expected_count:,})")
        print(f"relative difference: {difference:.2e} (at most {TOLERANCE:.0e})", flush=True)
        failed |= not (count == reference_count == expected_count and difference <= TOLERANCE)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

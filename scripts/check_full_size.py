"""Compare jaxbooth's UNet with diffusers' at its real size, with random weights, in float32 on the CPU.

    python scripts/check_full_size.py --size sd15     # 9 GB of memory, two minutes on 2 cores

Prints the parameter counts and the largest difference of one forward pass at 64x64 latents, relative to the
largest value; exits with 1 where a count differs from the published model's or the difference is over 1e-4.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import diffusers
import jax
import numpy as np
import torch
from make_pipeline import SIZES

from jaxbooth.models.unet import UNet2DConditionModel
from jaxbooth.weights import Network, from_diffusers

_SD15 = SIZES["sd15"]["unet"]
CONFIGS = {
    "sd15": _SD15,
    "sd21": _SD15
    | {
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
}
PARAMETERS = {"sd15": 859_520_964, "sd21": 865_910_724}
TOLERANCE = 1e-4


def compare(config: dict, seed: int = 0) -> tuple[int, int, float]:
    """Returns both parameter counts (diffusers', jaxbooth's) and the relative difference."""
    torch.manual_seed(seed)
    reference = diffusers.UNet2DConditionModel(**config).eval()
    rng = np.random.default_rng(seed)
    latents_bhwc = rng.standard_normal((1, 64, 64, config["in_channels"]), np.float32)
    context_btd = rng.standard_normal((1, 77, config["cross_attention_dim"]), np.float32)
    timesteps_b = np.array([500], np.int32)

    start = time.perf_counter()
    with torch.no_grad():
        expected_bchw = reference(
            torch.from_numpy(latents_bhwc).permute(0, 3, 1, 2),
            torch.from_numpy(timesteps_b),
            torch.from_numpy(context_btd),
        ).sample
    expected_bhwc = expected_bchw.permute(0, 2, 3, 1).numpy()
    print(f"diffusers: {time.perf_counter() - start:.0f} s")

    network = Network.build(UNet2DConditionModel, dict(reference.config))
    tensors = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    counts = (
        sum(tensor.size for tensor in tensors.values()),
        sum(shape.size for shape in network.shapes.values()),
    )
    params = from_diffusers(network, tensors, "unet")
    del reference, tensors  # Two copies of the weights in memory, not three.
    start = time.perf_counter()
    with jax.default_matmul_precision("highest"):
        predict = jax.jit(lambda params, *inputs: network.bind(params)(*inputs))
        prediction_bhwc = np.asarray(predict(params, latents_bhwc, timesteps_b, context_btd))
    print(f"jaxbooth: {time.perf_counter() - start:.0f} s with compilation")
    return *counts, float(np.abs(prediction_bhwc - expected_bhwc).max() / np.abs(expected_bhwc).max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=CONFIGS, default="sd15")
    parser.add_argument("--config", type=Path, help="a unet/config.json, instead of a size")
    args = parser.parse_args()
    config = json.loads(args.config.read_text()) if args.config else CONFIGS[args.size]

    reference_count, count, difference = compare(config)
    expected_count = reference_count if args.config else PARAMETERS[args.size]
    print(f"parameters: {count:,} (diffusers {reference_count:,}, expected {expected_count:,})")
    print(f"relative difference: {difference:.2e} (at most {TOLERANCE:.0e})")
    return int(not (count == reference_count == expected_count and difference <= TOLERANCE))


if __name__ == "__main__":
    sys.exit(main())

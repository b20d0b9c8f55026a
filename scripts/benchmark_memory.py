"""Measure the memory and speed of a whole job (class images, training, previews, export) on GPUs of every size.

    python scripts/benchmark_memory.py --size sd15                             # a large GPU with limited memory
    python scripts/benchmark_memory.py --size tiny --resolution 64 --tiers 6   # any CPU, to see that it runs

Each tier is a separate process with its own config from configs/. On a GPU it gets the memory of the card minus 0.7 GiB
for CUDA's context. Weights are random and photos are noise, but speed and memory are those of a real run. The exit code
is 1 if a tier fails.
"""

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
TIERS = {24: "gpu_24gb", 16: "gpu_16gb", 12: "gpu_12gb", 8: "gpu_8gb", 6: "gpu_6gb"}


def run_tier(gigabytes: int, options: argparse.Namespace) -> dict[str, float]:
    """Run the job of one tier in this process and return its memory in GiB and its speed."""
    import torch

    from booth.config.loading import load_config
    from booth.config.values import set_field
    from torchbooth.memory_plan import CONTEXT_GIB, GIB
    from torchbooth.train import train

    config = load_config(ROOT / "configs" / f"{TIERS[gigabytes]}.py")
    folder = Path(options.folder)
    fields = {
        "model.source": options.model, "instance.images": str(folder / "photos"), "data.resolution": options.resolution,
        "instance.prompt": "a photo of sks dog", "prior.prompt": "a photo of dog", "prior.count": 4,
        "prior.inference_steps": 4, "samples.inference_steps": 4, "samples.every_steps": options.steps // 2,
        "samples.before_after": True, "train.steps": options.steps, "checkpoint.every_steps": 0, "log.every_steps": 1,
    }  # fmt: skip
    for name, value in fields.items():
        set_field(config, name, value)
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (gigabytes - CONTEXT_GIB) * GIB / total))
    run = train(config, folder / f"run-{gigabytes}")
    speeds = [line["samples_per_s"] for line in run.metrics[len(run.metrics) // 2 + 1 :]]
    reserved, used = torch.cuda.max_memory_reserved() / GIB, torch.cuda.max_memory_allocated() / GIB
    return {"speed": float(np.median(speeds)), "reserved": reserved, "used": used}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size", default="sd15", help="a size of make_pipeline.py; the model is made in a temporary folder"
    )
    parser.add_argument("--model", help="a pipeline folder instead of --size")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tiers", type=int, nargs="+", choices=TIERS, default=list(TIERS))
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_tier(options.one, options)))
        return 0
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        if not options.model:
            make_pipeline = importlib.import_module("make_pipeline").make_pipeline
            options.model = str(make_pipeline(options.size, Path(folder) / options.size))
        (Path(folder) / "photos").mkdir()
        for number in range(4):
            noise = np.random.default_rng(number).integers(
                0, 256, (options.resolution, options.resolution, 3), np.uint8
            )
            Image.fromarray(noise).save(Path(folder) / "photos" / f"{number}.png")
        print("| card, GB | GiB reserved | GiB in use | samples/s |\n|---|---|---|---|")
        for tier in options.tiers:
            command = [sys.executable, __file__, "--one", str(tier), "--model", options.model, "--folder", folder]
            command += ["--resolution", str(options.resolution), "--steps", str(options.steps)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                failed = True
                print(f"| {tier} | {(done.stderr.strip().splitlines() or ['killed'])[-1][:200]} | | |", flush=True)
            else:
                result = json.loads(done.stdout.splitlines()[-1])
                cells = (f"{result['reserved']:.2f}", f"{result['used']:.2f}", f"{result['speed']:.2f}")
                print(f"| {tier} | {' | '.join(cells)} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

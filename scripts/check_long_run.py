"""Check that a long run does not grow: train the tiny model for thousands of steps and watch the process from outside.

python scripts/check_long_run.py --backend torch --steps 5000
python scripts/check_long_run.py --backend jax --steps 5000

Every second the script reads the resident memory, open files and threads of the process and the number of logged steps.
It prints the medians and the samples per second of the second and the last fifth of the run (the first fifth warms up),
the slope of memory by least squares without the first fifth, and the size of the logs. The exit code is 1 if anything
grew.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from draw_photos import draw_photos
from make_pipeline import make_pipeline

CONFIG = Path(__file__).parents[1] / "configs" / "smoke.py"
MOST_KB_A_STEP = 1.0  # the limit of the slope; a leak of one 64x64 picture a step would give 12
MOST_SLOWER = 1.15
MOST_LOG_A_STEP = 1000  # bytes


def watch(command: list[str], out: Path, steps: int) -> tuple[int, np.ndarray]:
    """Run a command and return (exit code, one row a second).

    The columns are logged steps, resident bytes, open files, threads and seconds.
    """
    rows = []
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with (out / "stderr.log").open("wb") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env=environment)
    seen = psutil.Process(process.pid)
    metrics = out / "run" / "metrics.jsonl"
    began = shown = time.monotonic()
    logged = position = 0
    while process.poll() is None:
        if metrics.exists():
            with metrics.open("rb") as file:
                file.seek(position)
                new = file.read()
            position += len(new)
            logged += new.count(b"\n")
            try:
                with seen.oneshot():
                    now = time.monotonic() - began
                    rows.append((logged, seen.memory_info().rss, seen.num_fds(), seen.num_threads(), now))
            except psutil.NoSuchProcess:
                break
        if time.monotonic() > shown + 30:
            shown = time.monotonic()
            print(f"{logged} of {steps} steps after {shown - began:.0f} s", file=sys.stderr, flush=True)
        time.sleep(1)
    return process.wait(), np.array([row for row in rows if row[0]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("torch", "jax"), default="torch")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=Path("runs/long-run"), help="a new folder")
    options = parser.parse_args()
    out = options.out.absolute()
    out.mkdir(parents=True)
    model, steps = make_pipeline("tiny", out / "tiny"), options.steps
    draw_photos(out / "photos")
    fields = {
        "model.source": model, "instance.images": out / "photos", "train.steps": steps, "train.learning_rate": 1e-6,
        "checkpoint.every_steps": steps // 10, "samples.every_steps": steps // 10,
    }  # fmt: skip
    command = [sys.executable, "-m", f"{options.backend}booth.train", "--config", str(CONFIG)]
    command += ["--workdir", str(out / "run"), *(f"--config.{name}={value}" for name, value in fields.items())]
    code, rows = watch(command, out, steps)
    if code:
        print(f"the run ended with {code}: {(out / 'stderr.log').read_text(encoding='utf-8').splitlines()[-1]}")
        return code
    step, memory, files, threads, _ = rows.T
    early, late = (step > steps / 5) & (step <= steps * 2 / 5), step > steps * 4 / 5
    kb_a_step = np.polyfit(step[step > steps / 5], memory[step > steps / 5], 1)[0] / 1e3
    speeds = [json.loads(line)["samples_per_s"] for line in (out / "run" / "metrics.jsonl").open(encoding="utf-8")]
    fast, slow = np.median(speeds[steps // 5 : steps * 2 // 5]), np.median(speeds[steps * 4 // 5 :])
    logs = {
        "metrics.jsonl": out / "run" / "metrics.jsonl", "stderr": out / "stderr.log",
        "tensorboard": out / "run" / "tensorboard",
    }  # fmt: skip

    def size(path: Path) -> int:
        return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")))

    print(f"{options.backend}booth, {steps} steps of the tiny model, previews and checkpoints every {steps // 10}:")
    print(f"  resident memory   {np.median(memory[early]) / 1e6:.0f} MB early, {np.median(memory[late]) / 1e6:.0f} MB")
    print(f"  its slope         {kb_a_step:+.3f} KB a step")
    print(f"  open files        {np.median(files[early]):.0f} early, {np.median(files[late]):.0f} late")
    print(f"  threads           {np.median(threads[early]):.0f} early, {np.median(threads[late]):.0f} late")
    print(f"  samples a second  {fast:.1f} early, {slow:.1f} late")
    print("  logs              " + ", ".join(f"{name} {size(path) / 1e3:.0f} KB" for name, path in logs.items()))
    grew = [
        name
        for name, grows in {
            "memory": kb_a_step > MOST_KB_A_STEP,
            "open files": np.median(files[late]) > np.median(files[early]),
            "threads": np.median(threads[late]) > np.median(threads[early]),
            "the time of a step": fast > MOST_SLOWER * slow,
            "the logs": sum(map(size, logs.values())) > MOST_LOG_A_STEP * steps,
        }.items()
        if grows
    ]
    print(f"grew: {', '.join(grew)}" if grew else "nothing grew")
    return bool(grew)


if __name__ == "__main__":
    sys.exit(main())

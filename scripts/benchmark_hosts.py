"""Measure what it costs that several processes agree: updates of two processes here, with and without it, in turns.

    python scripts/benchmark_hosts.py

Two processes of each backend train the tiny model on this machine's processors, in rounds: one run that agrees after
every update whether to stop, and one that does not ask. Metrics are read after every
update in both, so no process runs ahead. The script prints the median over the rounds of the time of an update.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
UPDATES, WARM_UP = 40, 10

# Runs `train` in one process and prints the mean time of its updates, in milliseconds.
WORKER = f"""
import sys, time
from booth.commands import cli
from booth.train import loop

package, agrees, *arguments = sys.argv[1:]
original, ends = loop.stop_asked, []

def timed(hosts, request):
    asked = original(hosts, request) if agrees == "yes" else lambda: 0

    def at_the_end_of_an_update():
        number = asked()
        ends.append(time.perf_counter())
        return number

    return at_the_end_of_an_update

loop.stop_asked = timed
code = cli.main(package, ["train", *arguments])
print("mean", 1e3 * (ends[-1] - ends[{WARM_UP}]) / (len(ends) - 1 - {WARM_UP}) if not code else "failed")
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for script, name, more in (("make_pipeline.py", "tiny", ["--size", "tiny"]), ("draw_photos.py", "photos", [])):
            command = [sys.executable, str(ROOT / "scripts" / script), *more, "--out", str(folder / name)]
            subprocess.run(command, check=True, capture_output=True)
        for package in ("torchbooth", "jaxbooth"):
            times: dict[str, list[float]] = {"yes": [], "no": []}
            for round_ in range(rounds):
                for agrees, measured in times.items():
                    measured.append(update_time(folder, f"{round_}-{agrees}", package, agrees))
            with_it, without = (statistics.median(measured) for measured in times.values())
            for what, measured in zip(("agreeing", "not asking"), times.values(), strict=True):
                each = ", ".join(f"{value:.1f}" for value in measured)
                print(f"{package}, {what}: {statistics.median(measured):.1f} ms an update ({each})")
            print(f"{package}: {with_it / without - 1:+.1%}", flush=True)
    return 0


def update_time(folder: Path, name: str, package: str, agrees: str) -> float:
    """Return the mean time of an update of two processes that are one run, in milliseconds."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    settings = {
        "model.source": folder / "tiny", "instance.images": folder / "photos", "prior.count": 2,
        "prior.images": folder / "class_images", "prior.inference_steps": 2, "train.batch_size": 2,
        "train.steps": UPDATES, "log.every_steps": 1, "samples.every_steps": 0, "checkpoint.every_steps": 0,
    }  # fmt: skip
    arguments = ["--config", "configs/smoke.py", "--workdir", str(folder / f"{package}-{name}")]
    arguments += [f"{name}={value}" for name, value in settings.items()]
    processes = []
    for index in range(2):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
        more = ["--coordinator", f"localhost:{port}", "--hosts", "2", "--host", str(index)]
        if package == "torchbooth":
            environment |= {"RANK": str(index), "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
            environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
            more = []
        command = [sys.executable, "-c", WORKER, package, agrees, *arguments, *more]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        processes.append(subprocess.Popen(command, env=environment, cwd=ROOT, **pipes))  # type: ignore[call-overload]
    said = [process.communicate()[0] for process in processes]
    return float(said[0].partition("mean ")[2])


if __name__ == "__main__":
    sys.exit(main())

"""Measure what it costs that several processes agree after each update whether to stop, with two processes here.

    python scripts/benchmark_hosts.py

Two processes of each backend train the tiny model on this machine. In the middle of the run they agree many
times in a row, while no device computes. The script prints the time of an update, and how long it takes to agree once.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
UPDATES, WARM_UP, TIMES = 40, 10, 200

# Runs `train` in one process and prints both times in milliseconds.
WORKER = f"""
import sys, time
from booth.commands import cli
from booth.train import loop

package, *arguments = sys.argv[1:]
original, ends, agreeing = loop.stop_asked, [], []

def timed(hosts, request):
    asked = original(hosts, request)

    def at_the_end_of_an_update():
        number = asked()
        if len(ends) == {WARM_UP}:
            time.sleep(1)  # the devices finish what they were given
            began = time.perf_counter()
            for _ in range({TIMES}):
                asked()
            agreeing.append((time.perf_counter() - began) / {TIMES})
            ends.append(time.perf_counter())
        ends.append(time.perf_counter())
        return number

    return at_the_end_of_an_update

loop.stop_asked = timed
if cli.main(package, ["train", *arguments]):
    sys.exit(1)
print("measured", 1e3 * (ends[-1] - ends[{WARM_UP}]) / (len(ends) - 1 - {WARM_UP}), 1e3 * agreeing[0])
"""


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for script, name, more in (("make_pipeline.py", "tiny", ["--size", "tiny"]), ("draw_photos.py", "photos", [])):
            command = [sys.executable, str(ROOT / "scripts" / script), *more, "--out", str(folder / name)]
            subprocess.run(command, check=True, capture_output=True)
        for package in ("torchbooth", "jaxbooth"):
            update, agreeing = measure(folder, package)
            print(
                f"{package}: {update:.1f} ms an update, {agreeing:.3f} ms to agree: {agreeing / update:.2%}", flush=True
            )
    return 0


def measure(folder: Path, package: str) -> tuple[float, float]:
    """Return the time of an update of two processes that are one run, and that of agreeing once, in milliseconds."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    settings = {
        "model.source": folder / "tiny", "instance.images": folder / "photos", "prior.count": 2,
        "prior.images": folder / "class_images", "prior.inference_steps": 2, "train.batch_size": 2,
        "train.steps": UPDATES, "log.every_steps": 1, "samples.every_steps": 0, "checkpoint.every_steps": 0,
    }  # fmt: skip
    arguments = ["--config", "configs/smoke.py", "--workdir", str(folder / package)]
    arguments += [f"{name}={value}" for name, value in settings.items()]
    processes = []
    for index in range(2):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
        more = ["--coordinator", f"localhost:{port}", "--hosts", "2", "--host", str(index)]
        if package == "torchbooth":
            environment |= {"RANK": str(index), "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
            environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
            more = []
        command = [sys.executable, "-c", WORKER, package, *arguments, *more]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        processes.append(subprocess.Popen(command, env=environment, cwd=ROOT, **pipes))  # type: ignore[call-overload]
    said = [process.communicate()[0] for process in processes]
    update, agreeing = map(float, said[0].partition("measured ")[2].split())
    return update, agreeing


if __name__ == "__main__":
    sys.exit(main())

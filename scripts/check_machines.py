"""Run tests as on other machines: with other thread counts, older instruction sets, or busy cores.

python scripts/check_machines.py                        the tests that compare numbers, on every machine of the table
python scripts/check_machines.py --machine threads-2 --machine avx2 -- tests/parity -m "not full"

Arguments after `--` go to pytest unchanged. A processor without an instruction set ignores the switch that turns this
set off, so run the script on a recent processor. PyTorch's own switch for AVX2 is not in the table: it breaks PyTorch's
bfloat16 attention on processors with AMX ("pack_vnni2"), and no test needs this combination.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
MACHINES = {
    "threads-1": {"OMP_NUM_THREADS": "1"},
    "threads-2": {"OMP_NUM_THREADS": "2"},
    "threads-4": {"OMP_NUM_THREADS": "4"},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "XLA_FLAGS": "--xla_cpu_max_isa=AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "XLA_FLAGS": "--xla_cpu_max_isa=AVX512"},
    "busy": {},  # on every core another process computes all the time
}
# The tests that compare numbers, and those in which processes wait for each other.
TESTS = (
    "tests/parity", "tests/torchbooth/test_memory.py", "tests/booth/test_solvers.py", "tests/booth/test_schedule.py",
    "tests/jaxbooth/test_kernels.py", "tests/booth/test_stopping.py", "-m", "not full",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", choices=MACHINES, action="append", help="default: all")
    parser.add_argument("tests", nargs="*", default=TESTS, help="arguments for pytest")
    options = parser.parse_args()
    failed = []
    for name in options.machine or MACHINES:
        began = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:warnings", *options.tests]
        others = [_busy() for _ in range(os.cpu_count() or 1)] if name == "busy" else []
        try:
            code = subprocess.run(command, cwd=ROOT, env=os.environ | MACHINES[name]).returncode
        finally:
            for other in others:
                other.kill()
        print(f"{name}: exit code {code}, {time.monotonic() - began:.0f} s", flush=True)
        if code:
            failed.append(name)
    sys.exit(f"failed on: {', '.join(failed)}" if failed else 0)


def _busy() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "while True: pass"])


if __name__ == "__main__":
    main()

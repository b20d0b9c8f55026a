"""Kill runs (kill -9) at random moments of every phase; the same command again must end as if nothing had happened.

python scripts/crash_test.py --kills 50          both backends in turn; about half an hour on two cores
python scripts/crash_test.py --kills 4 --backend jax

Each kill is a new run of a tiny model, which is killed at a random moment and started again with the same command. The
script checks that

- the run continues from the newest checkpoint (or, in half of the cases, from the oldest, given with --from-step): so
  every checkpoint that has its final name is complete, and no saved update is lost;
- exported weights, losses and pictures are equal to those of an undisturbed run, bit for bit;
- no temporary file is left.
"""

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from draw_photos import draw_photos
from make_pipeline import make_pipeline

CONFIG = Path(__file__).parents[1] / "configs" / "smoke.py"
FIELDS = {
    "prior.count": 8, "train.steps": 12, "checkpoint.every_steps": 4, "samples.every_steps": 6,
    "samples.before_after": "true", "log.every_steps": 1,
}  # fmt: skip


def _any(folder: Path, pattern: str) -> bool:
    return any(folder.glob(pattern))


# The phases in their order, each with a test whether it has begun, from the run folder and the output so far.
BEGUN: dict[str, Callable[[Path, str], bool]] = {
    "starting": lambda run, said: True,
    "class images": lambda run, said: (run / "class_images" / "class_images.json").exists(),
    "encoding images": lambda run, said: _any(run / "cache", "*.npz"),
    "base pictures": lambda run, said: "base pictures" in said,
    "first update": lambda run, said: "training:" in said,
    "training": lambda run, said: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size > 0,
    "saving": lambda run, said: _any(run / "checkpoints", ".staging-step-*") or _any(run / "checkpoints", "step-*"),
    "previews": lambda run, said: "preview:" in said,
    "before and after": lambda run, said: "tuned pictures" in said,
    "export": lambda run, said: _any(run, "*new-pipeline"),
    "end": lambda run, said: "pipeline written to" in said,
}
# Before the first update and after the last, SIGTERM ends the process as it does any other.
CODES = {signal.SIGKILL: {-signal.SIGKILL}, signal.SIGTERM: {143, -signal.SIGTERM}, signal.SIGINT: {130}}
MISSED = "missed"
PHASES = [*list(BEGUN)[:-1], "anywhere"]


@dataclass
class Lane:
    """The runs of one backend in `folder`, which are compared with an undisturbed run."""

    backend: str
    folder: Path
    model: Path
    photos: Path
    seconds: dict[str, float] = field(default_factory=dict)  # from the beginning of a phase to that of the next
    slowest: float = 0.0  # the most seconds from a signal to the end of the process

    def start(self, name: str, *more: str, cache: str = "cache") -> tuple[subprocess.Popen[bytes], Path]:
        """Start a run and return (the process, the file with its output)."""
        values = {"model.source": self.model, "instance.images": self.photos, **FIELDS}
        overrides = [f"--config.{key}={value}" for key, value in values.items()]
        command = [sys.executable, "-m", f"{self.backend}booth.train", "--config", str(CONFIG), "--workdir", name]
        env = os.environ | {
            "OMP_NUM_THREADS": "1",
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
        said = self.folder / f"{name}.log"
        with said.open("ab") as stderr:
            process = subprocess.Popen([*command, *overrides, *more], cwd=self.folder, env=env, stderr=stderr)
        return process, said

    def undisturbed(self) -> None:
        """Do the undisturbed run twice: with an empty compilation cache, and with the cache that other runs use.

        Raise SystemExit if it fails.
        """
        for name in ("empty", "whole"):
            process, said = self.start(name)
            began = {"starting": time.monotonic()}
            for phase in self._phases(name, said, process):
                began[phase] = time.monotonic()
            if process.wait() != 0:
                raise SystemExit(f"the undisturbed run failed:\n{said.read_text(encoding='utf-8')}")
            began.setdefault("end", time.monotonic())
            pairs = itertools.pairwise(began.items())
            self.seconds = {phase: next_time - time for (phase, time), (_, next_time) in pairs}
            self.seconds["anywhere"] = began["end"] - began["starting"]

    def _phases(self, name: str, said: Path, process: subprocess.Popen[bytes]) -> Iterator[str]:
        """Yield each phase except the first as soon as it has begun, until the process ends."""
        waiting = list(BEGUN)[1:]
        while waiting and process.poll() is None:
            if BEGUN[waiting[0]](self.folder / name, said.read_text(encoding="utf-8")):
                yield waiting.pop(0)
            else:
                time.sleep(0.002)

    def kill(self, number: int, phase: str, seed: int, number_of_signal: int) -> str:
        """Kill one run, start it again, and return what went wrong.

        The text is "" if nothing went wrong; it begins with MISSED if the run ended before the signal.
        """
        name, draw = f"kill-{number:03d}", random.Random(f"{seed} {number}")
        # In the phase that compiles the step, the cache must be empty.
        cache = f"cache-{number}" if phase == "first update" else "cache"
        process, said = self.start(name, cache=cache)
        if phase not in ("starting", "anywhere"):
            next((begun for begun in self._phases(name, said, process) if begun == phase), None)
        time.sleep(draw.uniform(0, self.seconds.get(phase, 0.5)))
        process.send_signal(number_of_signal)
        sent = time.monotonic()
        if (code := process.wait()) not in CODES[number_of_signal]:
            return f"{MISSED}: it had ended with {code}" if code == 0 else f"it ended with {code}"
        self.slowest = max(self.slowest, time.monotonic() - sent)
        run = self.folder / name
        saved = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
        oldest, finished = draw.random() < 0.5, (run / "pipeline").exists()
        chosen = saved[0 if oldest else -1] if saved else None
        more = ["--from-step", str(int(chosen[5:]))] if chosen and oldest and not finished else []
        before = len(said.read_bytes())
        process, _ = self.start(name, *more, cache=cache)
        code = process.wait()
        log = said.read_bytes()[before:].decode()
        if code != 0:
            return f"the same command ended with {code}: {log.splitlines()[-1:]}"
        if chosen and not finished and f"resumed from step {int(chosen[5:])}\n" not in log:
            return f"the run did not continue from {chosen}, which was saved"
        return self.compare(run)

    def compare(self, run: Path) -> str:
        whole = self.folder / "whole"
        for folder, pattern in (("pipeline", "*/*.safetensors"), ("samples", "**/*.png"), ("class_images", "*.png")):
            for wanted in sorted((whole / folder).glob(pattern)):
                got = run / wanted.relative_to(whole)
                if not got.is_file() or got.read_bytes() != wanted.read_bytes():
                    return f"{got.relative_to(run)} is not as in the undisturbed run"
        if _losses(run) != _losses(whole):
            return "metrics.jsonl has other losses than the undisturbed run"
        hidden = [str(path.relative_to(run)) for path in run.rglob(".*") if path.name not in (".lock",)]
        return f"left behind: {', '.join(hidden)}" if hidden else ""


def _losses(run: Path) -> list[tuple[int, float]]:
    with (run / "metrics.jsonl").open(encoding="utf-8") as lines:
        return [(line["step"], line["loss"]) for line in map(json.loads, lines)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="number of kills in all")
    parser.add_argument("--backend", nargs="+", choices=("torch", "jax"), default=["torch", "jax"])
    parser.add_argument(
        "--signal", choices=("KILL", "TERM", "INT"), default="KILL", help="the signal that ends the runs"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()), help="seed of the random moments; it is printed")
    parser.add_argument("--workers", type=int, default=2, help="number of runs at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/crash-test"), help="a new folder")
    options = parser.parse_args()
    out = options.out.absolute()
    out.mkdir(parents=True)
    print(f"seed {options.seed}", flush=True)
    model = make_pipeline("tiny", out / "tiny")
    draw_photos(out / "photos")
    lanes = []
    for backend in options.backend:
        (out / backend).mkdir()
        lanes.append(Lane(backend, out / backend, model, out / "photos"))
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(Lane.undisturbed, lanes))
        jobs = [
            (lanes[number % len(lanes)], number, PHASES[number // len(lanes) % len(PHASES)])
            for number in range(options.kills)
        ]
        failures, missed, kills = 0, 0, Counter[str]()
        ended_by = getattr(signal, f"SIG{options.signal}")
        for (lane, number, phase), failure in zip(
            jobs, pool.map(lambda job: job[0].kill(*job[1:], options.seed, ended_by), jobs), strict=True
        ):
            missed += failure.startswith(MISSED)
            failures += bool(failure) and not failure.startswith(MISSED)
            kills[f"{lane.backend} {phase}"] += not failure.startswith(MISSED)
            print(f"{number:3d} {lane.backend:5s} {phase:17s} {failure or 'as if undisturbed'}", flush=True)
    print(
        f"\n{kills.total()} times SIG{options.signal} in {len(+kills)} phases of {', '.join(options.backend)}"
        f" ({missed} more came too late): {failures} failures; at most"
        f" {max(lane.slowest for lane in lanes):.1f} s from the signal to the end"
    )
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())

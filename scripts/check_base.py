"""Measure with the yardstick how often the embedded base draws the right class and setting.

    python scripts/check_base.py --out runs/check-base

The base makes four pictures of each class in each setting. The script writes all verdicts to --out/seen.json, and 100
of the pictures with the verdicts to --out/judged.png, so that a person can check the yardstick.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
from dreambooth_scores import FIRST_SEED, GUIDANCE, sample
from picture_world.captions import caption
from picture_world.settings import SETTINGS
from picture_world.world import CLASSES

from booth.common.files import write_text
from booth.config.sources import EMBEDDED
from booth.data import pictures
from booth.diffusion.backend import load_backend
from booth.diffusion.sampling import ImageRequest
from booth.evaluate.yardstick import look


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default=EMBEDDED, help="pipeline folder")
    parser.add_argument("--backend", choices=("torch", "jax"), default="torch")
    parser.add_argument("--pictures", type=int, default=4, help="number of pictures of each class in each setting")
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    arguments = parser.parse_args()
    asked = [(name, setting) for name in CLASSES for setting in SETTINGS] * arguments.pictures
    requests = [ImageRequest(caption(*pair), FIRST_SEED + seed) for seed, pair in enumerate(asked)]
    backend_class = load_backend(f"{arguments.backend}booth")
    made = sample(backend_class, arguments.model, requests, arguments.guidance)
    looks = look(made)
    seen = list(zip(looks.class_names, looks.setting_names, strict=True))
    verdicts = [{"asked": want, "seen": got} for want, got in zip(asked, seen, strict=True)]
    write_text(arguments.out / "seen.json", json.dumps(verdicts, indent=1) + "\n")
    for place, what in enumerate(("class", "setting")):
        right = [want[place] == got[place] for want, got in zip(asked, seen, strict=True)]
        print(f"{what} right: {np.mean(right):.1%} of {len(right)}")
        for name in dict.fromkeys(want[place] for want in asked):
            wrong = Counter(g[place] for w, g in zip(asked, seen, strict=True) if w[place] == name != g[place])
            total = sum(want[place] == name for want in asked)
            taken = ", ".join(f"{other} {count}" for other, count in wrong.most_common(4))
            print(f"  {name:9} {1 - wrong.total() / total:6.1%}  {taken and 'taken for ' + taken}")
    chosen = np.random.default_rng(0).permutation(len(asked))[:100]
    captions = [_verdict(asked[index], seen[index]) for index in chosen]
    pictures.save(pictures.grid([made[index] for index in chosen], captions, columns=10), arguments.out / "judged.png")


def _verdict(asked: tuple[str, str], seen: tuple[str, str]) -> str:
    words = [want if want == got else f"{want}? seen: {got}!" for want, got in zip(asked, seen, strict=True)]
    return ", ".join(words)


if __name__ == "__main__":
    main()

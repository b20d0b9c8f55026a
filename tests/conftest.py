"""Shared fixtures. A compilation cache serves all JAX tests, in this process and in subprocesses."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TQDM_MININTERVAL", "5")
sys.path.insert(0, str(ROOT / "scripts"))

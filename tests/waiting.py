"""How tests wait for other processes: for what they do, and never for so long as only a fast machine would need."""

import time

PATIENCE_S = 1200  # nothing that works takes so long, on however slow and busy a machine; what hangs fails then


def wait_until(condition, process=None, what="it"):
    """Wait until `condition()` is true; fail if `process` ends before, or after `PATIENCE_S`."""
    until = time.monotonic() + PATIENCE_S
    while not condition():
        ended = process is not None and process.poll() is not None
        assert not (ended and not condition()), f"{what} has not come, and the process has ended"
        assert time.monotonic() < until, f"{what} has not come"
        time.sleep(0.01)

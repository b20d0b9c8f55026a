"""How tests wait for other processes: until something has happened, never for a time that a slow machine exceeds."""

import time

PATIENCE_S = 1200  # longer than anything that works takes on a slow and busy machine; a test that hangs fails then


def wait_until(condition, process=None, what="it"):
    """Wait until `condition()` is true. Fail if `process` ends first, or after `PATIENCE_S` seconds."""
    until = time.monotonic() + PATIENCE_S
    while not condition():
        ended = process is not None and process.poll() is not None
        assert not (ended and not condition()), f"{what} has not come, and the process has ended"
        assert time.monotonic() < until, f"{what} has not come"
        time.sleep(0.01)

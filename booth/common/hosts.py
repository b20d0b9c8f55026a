"""The processes of a run, as each of them sees the others."""

from typing import Any, Protocol

from booth.common.signals import StopRequest


class Hosts(Protocol):
    """The processes of a run, seen from one of them. A message is anything that can be pickled."""

    index: int  # 0 is the leader
    count: int

    def send(self, message: Any) -> None:
        """Send a message from the leader to all others, without waiting."""
        ...

    def receive(self) -> Any:
        """Return the leader's next message; wait for it as long as the leader lives."""
        ...

    def confirm(self, failure: str) -> None:
        """Tell the leader that what the last message asked for is done (""), or why it failed."""
        ...

    def confirmed(self) -> list[str]:
        """Wait until every other host has confirmed the last message; return the failure of each, "" for success."""
        ...

    def fail(self, reason: str, code: int) -> None:
        """Tell the others that this host has failed. A host that waits in a collective for the failed one would never
        reach `end`: its process is ended a little later, with this reason and exit code."""
        ...

    def pass_on(self, request: StopRequest) -> None:
        """From now on, when one of the others is asked to stop, ask the leader to stop too."""
        ...

    def end(self) -> None:
        """Finish the run on this host; the leader gives the others a little time to confirm its last message."""
        ...

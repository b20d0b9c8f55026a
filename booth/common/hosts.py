"""The processes of a run, as each of them sees the others."""

from typing import Any, Protocol

from booth.common.signals import StopRequest


class Hosts(Protocol):
    """The processes of a run, seen from one of them. Messages are anything that can be pickled."""

    index: int  # 0 leads
    count: int

    def send(self, message: Any) -> None:
        """From the leader to all others; does not wait."""
        ...

    def receive(self) -> Any:
        """Return the leader's next message; waits for it as long as the leader lives."""
        ...

    def confirm(self, failure: str) -> None:
        """To the leader: what the last message asked for is done, or why not."""
        ...

    def confirmed(self) -> list[str]:
        """Wait for every other host to confirm the last message; the failure of each, "" where there is none."""
        ...

    def fail(self, reason: str, code: int) -> None:
        """This host has failed. Who has not come to an `end` a little later, since it waits in a collective for
        one that will not come, is ended with this reason and exit code."""
        ...

    def pass_on(self, request: StopRequest) -> None:
        """From now on, what one of the others is asked to do, stop, the leader is asked to do too."""
        ...

    def end(self) -> None:
        """The run is over here; the leader gives the others a little time to confirm its last message."""
        ...

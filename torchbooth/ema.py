"""The exponential moving average of the trained parameters; previews and exports use it."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch

from torchbooth.host_states import HOST, HostStates
from torchbooth.sharding import local


class Average:
    """An average of parameters by `component.name`, always in float32. It is placed like the parameters or, with
    `ema.device=host`, in the host's memory; then each tensor is on the device only for its update.

    After update n (0 is the first) it moves `max(1 - decay, 9 / (10 + n))` of the way to the new weights, but the
    whole way after the first. This is diffusers' `EMAModel` without its options, whose decay is
    min(decay, (1 + n) / (10 + n)). A skipped update does not count.
    """

    def __init__(self, trainable: Mapping[str, torch.nn.Parameter], config: Any) -> None:
        self._trainable, self._decay = trainable, config.ema.decay
        device = next(iter(trainable.values())).device
        self._host = HostStates(device) if config.ema.device == "host" else None
        self._states: dict[str, dict[str, Any]] = {}  # one dict for each tensor, in the form that HostStates moves
        for name, parameter in trainable.items():
            weights = parameter.detach().to(HOST if self._host else device, torch.float32, copy=True)
            self._states[name] = {"average": weights}
        self._live: dict[str, torch.Tensor] = {}  # the networks' own weights while the average replaces them
        self.updates = torch.zeros((), device=device)  # the number of updates so far; part of a checkpoint

    @property
    def on_host(self) -> bool:
        """Whether the average is in the host's memory."""
        return self._host is not None

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Return the average by `component.name`, after all copies to the host's memory are complete."""
        if self._host:
            self._host.wait()
        return {name: state["average"] for name, state in self._states.items()}

    @torch.no_grad()
    def update(self, skipped: torch.Tensor) -> None:
        """Update the average after each update of the parameters; `skipped`, a scalar, is 1 if that was skipped."""
        # Computed as 1 - decay in float32, this would have an error of 1e-4.
        share = (9 / (10 + self.updates)).clamp(min=1 - self._decay)
        share = torch.where(self.updates > 0, share, 1.0) * (1 - skipped)
        for name, parameter in self._trainable.items():
            state = self._states[name]
            with self._host.fetched(state) if self._host else nullcontext():
                local(state["average"]).lerp_(local(parameter).float(), share)
        self.updates += 1 - skipped

    @torch.no_grad()
    def put_in(self) -> None:
        """Let the networks compute with the average until `take_out`; keep their own weights in the host's memory."""
        if not self._live:
            for name, weights in self.weights.items():
                parameter = local(self._trainable[name])
                self._live[name] = parameter.to(HOST, copy=True)
                parameter.copy_(local(weights))

    @torch.no_grad()
    def take_out(self) -> None:
        """Give the networks their own weights back, to the bit."""
        for name, weights in self._live.items():
            local(self._trainable[name]).copy_(weights)
        self._live = {}

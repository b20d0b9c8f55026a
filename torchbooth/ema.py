"""The exponential moving average of what trains; previews and exports are made of it."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch

from torchbooth.host_states import HOST, HostStates
from torchbooth.sharding import local


class Average:
    """An average of parameters by `component.name`, in float32 whatever they are, placed as they are or, with
    `ema.device=host`, in the host's memory, from where each tensor comes to the device for its update only.

    After update n (0 is the first) it moves `max(1 - decay, 9 / (10 + n))` of the way to the new weights, all of it
    after the first: diffusers' `EMAModel` without its options, whose decay is min(decay, (1 + n) / (10 + n)). An update
    that is left out counts for nothing.
    """

    def __init__(self, trainable: Mapping[str, torch.nn.Parameter], config: Any) -> None:
        self._trainable, self._decay = trainable, config.ema.decay
        device = next(iter(trainable.values())).device
        self._host = HostStates(device) if config.ema.device == "host" else None
        self._states: dict[str, dict[str, Any]] = {}  # of one tensor each, as HostStates moves them
        for name, parameter in trainable.items():
            weights = parameter.detach().to(HOST if self._host else device, torch.float32, copy=True)
            self._states[name] = {"average": weights}
        self._live: dict[str, torch.Tensor] = {}  # while the average is in their place
        self.updates = torch.zeros((), device=device)  # so far; part of a checkpoint

    @property
    def on_host(self) -> bool:
        """Whether it lives in the host's memory."""
        return self._host is not None

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """By `component.name`; what is on its way to the host's memory has arrived."""
        if self._host:
            self._host.wait()
        return {name: state["average"] for name, state in self._states.items()}

    @torch.no_grad()
    def update(self, skipped: torch.Tensor) -> None:
        """After each update of the parameters; `skipped`, a scalar, is 1 where there was none."""
        # As 1 - decay in float32 this would have an error of 1e-4.
        share = (9 / (10 + self.updates)).clamp(min=1 - self._decay)
        share = torch.where(self.updates > 0, share, 1.0) * (1 - skipped)
        for name, parameter in self._trainable.items():
            state = self._states[name]
            with self._host.fetched(state) if self._host else nullcontext():
                local(state["average"]).lerp_(local(parameter).float(), share)
        self.updates += 1 - skipped

    @torch.no_grad()
    def put_in(self) -> None:
        """The networks compute with the average until `take_out`; their own weights wait in the host's memory."""
        if not self._live:
            for name, weights in self.weights.items():
                parameter = local(self._trainable[name])
                self._live[name] = parameter.to(HOST, copy=True)
                parameter.copy_(local(weights))

    @torch.no_grad()
    def take_out(self) -> None:
        """The networks have their own weights again, to the bit."""
        for name, weights in self._live.items():
            local(self._trainable[name]).copy_(weights)
        self._live = {}

"""Rules for the values of a pipeline's own configs that this project computes with."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from booth.common.errors import UserError


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_fraction(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= 100_000


def _are(holds: Callable[[Any], bool], values: Any) -> bool:
    return isinstance(values, list) and len(values) > 0 and all(map(holds, values))


# The values that this project computes with: component and key -> (the default, the test of a value). All other values
# are left to diffusers and transformers.
_VALUES: Mapping[tuple[str, str], tuple[Any, Callable[[Any], bool]]] = {
    ("vae", "block_out_channels"): (None, partial(_are, _is_count)),
    ("vae", "latent_channels"): (None, _is_count),
    ("vae", "scaling_factor"): (1, lambda value: _is_number(value) and value != 0),
    ("vae", "shift_factor"): (None, lambda value: value is None or _is_number(value)),
    ("text_encoder", "max_position_embeddings"): (None, lambda value: _is_count(value) and value > 2),
    ("text_encoder", "vocab_size"): (49408, _is_count),
    ("scheduler", "num_train_timesteps"): (1000, _is_count),
    ("scheduler", "beta_start"): (0, _is_fraction),
    ("scheduler", "beta_end"): (0, _is_fraction),
    ("scheduler", "trained_betas"): (None, lambda value: value is None or _are(_is_fraction, value)),
}


def check_values(where: str, component: str, config: Mapping[str, Any]) -> None:
    """Raise UserError if a component's config has a value that cannot be used; `where` says where the config is."""
    for (owner, key), (default, holds) in _VALUES.items():
        if owner == component and not holds(config.get(key, default)):
            raise UserError(
                f"{where}: the config of its {component} is broken: {key} is {config.get(key, default)!r}; download it"
                " again"
            )

"""Find what a run trains by its config: networks, tensors, and the groups with their own learning rates."""

from ml_collections import ConfigDict


def trained_networks(config: ConfigDict) -> tuple[str, ...]:
    """Return the networks whose weights, or whose adapters, the run trains."""
    return ("unet",) * config.train.unet + ("text_encoder",) * config.train.text_encoder


def trains_text(config: ConfigDict) -> bool:
    """Return whether text embeddings change while a run trains, so that each update encodes token ids anew."""
    return bool(config.train.text_encoder or config.tokens.add)


def is_trained(config: ConfigDict, name: str) -> bool:
    """Return whether the run trains a tensor, named `component.name`."""
    if rate_group(name) == "tokens":
        return bool(config.tokens.add)
    trains = name.partition(".")[0] in trained_networks(config)
    return trains and (config.adapter.kind == "none" or ".lora_" in name)


def is_pulled(config: ConfigDict, name: str) -> bool:
    """Return whether `train.pull` pulls a trained tensor, named `component.name`; new tokens are not in the base."""
    return bool(config.train.pull > 0 and rate_group(name) != "tokens")


def rate_group(name: str) -> str:
    """Return the learning-rate group of a tensor, named `component.name`: its component, or "tokens" for new tokens."""
    return "tokens" if ".token_embedding.added." in name else name.partition(".")[0]


def rate_groups(config: ConfigDict) -> tuple[str, ...]:
    """Return all groups that have a learning rate."""
    return trained_networks(config) + ("tokens",) * bool(config.tokens.add)

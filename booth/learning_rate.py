"""Step -> learning rate, in NumPy: the backends' own schedulers would each need the other framework's absence."""

from ml_collections import ConfigDict


def learning_rate(config: ConfigDict, step: int) -> float:
    """The rate of update number `step` (0 for the first). Only the constant schedule exists so far."""
    assert config.train.lr_schedule == "constant" and config.train.lr_warmup_steps == 0, "refused by validate()"
    return config.train.learning_rate

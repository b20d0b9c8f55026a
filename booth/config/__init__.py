"""TODO"""

from booth.config.loading import load_config
from booth.config.values import default_config

__all__ = ["default_config", "load_config"]

"""The settings of a run: their table, their values from files and the command line, and the rules that join them.

The modules here only say which values a setting may have, and open no file of a model and no photo; other rooms carry
settings out.
This room may import `common`.
"""

from booth.config.loading import load_config
from booth.config.values import default_config

__all__ = ["default_config", "load_config"]

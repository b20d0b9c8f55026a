"""The settings of a run: their table, their values from files and the command line, and how they go together.

What a setting does lives where it is done; here is only what it may be, and no file of a model or photo is opened.
This room may import `common`.
"""

from booth.config.loading import load_config
from booth.config.values import default_config

__all__ = ["default_config", "load_config"]

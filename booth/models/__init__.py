"""Files of models, read and written: pipelines, single files, LoRA files and new tokens, from disk or the hub.

No network is computed here: the backends do that. No photo is read here.
This room may import `common` and `config`.
"""

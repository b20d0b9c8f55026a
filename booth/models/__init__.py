"""Files of models, read and written: pipelines, single files, LoRA files and new tokens, from disk or the hub.

No network is computed here, which the backends do, and no photo is read.
This room may import `common` and `config`.
"""

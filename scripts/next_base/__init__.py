"""The training of the next embedded base, on `drawn_world`. The base in use is that of `base_training`."""

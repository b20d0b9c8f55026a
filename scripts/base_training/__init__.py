"""How the embedded base is trained: pictures, then the autoencoder, then text encoder and UNet; see `train_base.py`."""

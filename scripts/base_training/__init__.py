"""The stages of training the embedded base: pictures, autoencoder, text encoder and UNet; see `train_base.py`."""

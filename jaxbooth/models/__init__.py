"""The networks of Stable Diffusion in Flax NNX, named as diffusers and transformers name them."""

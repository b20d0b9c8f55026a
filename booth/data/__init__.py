"""What the user gives: photos, captions, masks, class images, and what a run makes of them before it trains.

How class images are generated and how rows become batches lives in `train`.
This room may import `common`, `config`, `models` and `diffusion`.
"""

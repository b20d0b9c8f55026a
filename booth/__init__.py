"""The core of two DreamBooth trainers: everything that neither backend needs to own, in nine rooms.

A room imports itself and the rooms before it in this order: common, config, models, diffusion, data, train, evaluate,
report, commands. The backends, `jaxbooth` and `torchbooth`, import the rooms; no room imports a backend.
"""

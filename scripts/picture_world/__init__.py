"""A world of drawn objects for training and measuring: see `picture_world.world`."""

"""Showing a run: the page of a run, the model card, and a repository on the hub.

Nothing is trained or sampled here; everything is read from the run folder.
This room may import all rooms but `commands`.
"""

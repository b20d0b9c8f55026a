"""The words that some settings may have as values, and the placeholder for a caption in a prompt."""

SOURCES = ("none", "text", "names", "metadata")


PLACE = "{caption}"  # each caption replaces this in instance.prompt


LOSSES = ("mse", "huber", "smooth_l1")


SOLVERS = ("dpm++", "ddim", "euler", "euler_a", "pndm")

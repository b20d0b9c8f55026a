"""A world of bold flat drawings, easy to learn: few classes, calm settings, thick outlines."""

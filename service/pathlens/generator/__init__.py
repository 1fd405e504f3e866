"""GEN-CNP: a network that generates the pathway of an image in one pass (arXiv 2309.09887)."""

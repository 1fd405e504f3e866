"""The pathway gradient and what is drawn from it."""

"""Explain an image classifier."""

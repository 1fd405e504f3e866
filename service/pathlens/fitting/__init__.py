"""From a classifier and images to a bundle."""

"""How faithful pathways are, measured on images that did not build them."""

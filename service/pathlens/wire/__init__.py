"""The wire contract: generated stubs, and conversion between messages and the objects of `pathlens.explanation`."""

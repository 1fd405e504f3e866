"""The digits demonstration: everything from training a classifier to explained predictions over gRPC."""

"""Classifiers that exist only as ONNX files, read as PyTorch modules."""

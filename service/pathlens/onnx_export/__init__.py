"""Explanations as ONNX graphs: gradients are differentiated ahead of time."""

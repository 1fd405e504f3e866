"""What is stored and shipped: safetensors and JSON, and the model archive built from them."""

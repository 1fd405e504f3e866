"""What predictions and explanations cost: `make bench`, described in docs/performance.md."""

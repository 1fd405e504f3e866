"""A production classifier, captured once as a graph with named taps."""

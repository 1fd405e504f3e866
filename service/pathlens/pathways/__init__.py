"""Neurons, contributions, selection and the class-pathway bank: pure tensor code."""

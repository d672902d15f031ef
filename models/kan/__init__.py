"""Kolmogorov-Arnold networks and learned activations."""

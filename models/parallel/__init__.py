"""Tensor parallelism: one model over several ranks, each with a slice of every weight."""

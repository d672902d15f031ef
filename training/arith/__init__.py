"""The recipe of the small arithmetic language model: `python -m training.arith`."""

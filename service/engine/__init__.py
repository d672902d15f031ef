"""How many samples, each with its own chain, run at once. Names no runtime."""

"""The model repository: where versions come from, which of them are wanted, and which answers."""

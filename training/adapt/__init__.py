"""The recipe that makes a model of a converted checkpoint: `python -m training.adapt`."""

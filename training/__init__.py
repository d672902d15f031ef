"""Recipes that produced the shipped checkpoints, one command each."""

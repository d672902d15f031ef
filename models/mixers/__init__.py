"""MLPs and token mixers."""

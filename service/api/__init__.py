"""HTTP dialects. No tensors in here."""

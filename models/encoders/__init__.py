"""Text encoders of the BERT family."""

"""Decoder-only language models of the Llama family."""

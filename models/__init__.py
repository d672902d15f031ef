"""Architectures, and what a chain of their layers is. No HTTP, no files but weights and manifests."""

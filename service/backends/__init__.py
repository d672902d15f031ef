"""Runtimes behind one protocol. Each is imported only when a model needs it."""

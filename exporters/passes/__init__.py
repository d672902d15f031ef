"""Checkpoints to other checkpoints: fewer layers, averaged weights, lower rank. Offline; what comes out is exported."""

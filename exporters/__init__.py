"""Trained models to files that serve, verified against eager torch. Offline; knows no server."""

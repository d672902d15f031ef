"""The inference server: engine, backends, search and HTTP."""

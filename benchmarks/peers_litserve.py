"""LitServe as in its tutorial, for an ONNX file. A file of its own: its worker process imports the class by name."""

from typing import Any

import litserve as ls
import numpy as np
from peers import dtype_of, session_of


class Graph(ls.LitAPI):
    """Rows in, rows out; the batching hooks join and split them."""

    def __init__(self, file: str, **batching: Any) -> None:
        super().__init__(**batching)
        self.file = file

    def setup(self, device: str) -> None:
        """In the worker."""
        self.session = session_of(self.file)
        self.name, self.dtype = self.session.get_inputs()[0].name, dtype_of(self.session)

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe would read a type as a schema
        """[rows, ...]"""
        return np.asarray(request["inputs"], self.dtype)

    def batch(self, inputs: Any) -> Any:
        """One array of all requests' rows."""
        self.counts = [len(one) for one in inputs]
        return np.concatenate(inputs)

    def predict(self, x: Any) -> Any:
        """The graph."""
        return self.session.run(None, {self.name: x})[0]

    def unbatch(self, output: Any) -> Any:
        """Each request's rows."""
        return np.split(output, np.cumsum(self.counts)[:-1])

    def encode_response(self, output: Any) -> Any:
        """As JSON."""
        return {"outputs": output.tolist()}


def litserve(file: str, port: int, **batching: Any) -> None:
    """Serve with one worker; `batching` holds its settings."""
    server = ls.LitServer(Graph(file, **batching), accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(host="127.0.0.1", port=port, log_level="error", generate_client_file=False)

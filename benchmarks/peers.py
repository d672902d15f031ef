"""What people write today to serve an ONNX file, to be measured beside Fathom: `python peers.py KIND FILE PORT`.

naive: FastAPI with a pydantic body and a session in a synchronous route. floor: a bare ASGI function with orjson, no
validation, no queue and no metrics; nobody would deploy it, but no Python server behind uvicorn does less.
"""

import sys
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send


class Rows(BaseModel):
    """A request of the naive server."""

    inputs: list[list[float]]


def session_of(file: str) -> ort.InferenceSession:
    """A session with one thread, as in all servers measured."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def naive(session: ort.InferenceSession) -> FastAPI:
    """FastAPI as in its tutorial."""
    app = FastAPI()
    name = session.get_inputs()[0].name

    @app.post("/predict")
    def predict(body: Rows) -> dict[str, Any]:
        (outputs,) = session.run(None, {name: np.asarray(body.inputs, np.float32)})
        return {"outputs": outputs.tolist()}

    return app


def floor(session: ort.InferenceSession) -> Any:
    """As little as a Python server can do."""
    name = session.get_inputs()[0].name

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message.get("more_body", False)
        (outputs,) = session.run(None, {name: np.asarray(orjson.loads(body)["inputs"], np.float32)})
        answer = orjson.dumps({"outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


if __name__ == "__main__":
    kind, file, port = sys.argv[1:]
    app = {"naive": naive, "floor": floor}[kind](session_of(file))
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="error", access_log=False, lifespan="off")

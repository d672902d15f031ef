"""What people write today to serve an ONNX file, to be measured beside Fathom: `python peers.py KIND FILE PORT`.

naive: FastAPI with a pydantic body and a session in a synchronous route. litserve: LitServe as in its tutorial, and
litserve-batch with its batching, 2 ms of waiting. floor: a bare ASGI function with orjson, no validation, no queue and
no metrics; nobody would deploy it, but no Python server behind uvicorn does less. Each takes one input per request
row, floats or token ids as the graph wants them, and runs one thread in one process or worker.
"""

import sys
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson

KINDS = ("naive", "litserve", "litserve-batch", "floor")


def session_of(file: str) -> ort.InferenceSession:
    """A session with one thread, as in all servers measured."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def dtype_of(session: ort.InferenceSession) -> Any:
    """What the graph's one input is made of."""
    return np.int64 if session.get_inputs()[0].type == "tensor(int64)" else np.float32


def naive(file: str, port: int) -> None:
    """FastAPI as in its tutorial."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Rows(BaseModel):
        inputs: list[list[float]]

    app, session = FastAPI(), session_of(file)
    name, dtype = session.get_inputs()[0].name, dtype_of(session)

    @app.post("/predict")
    def predict(body: Rows) -> dict[str, Any]:
        (outputs,) = session.run(None, {name: np.asarray(body.inputs, dtype)})
        return {"outputs": outputs.tolist()}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)


def floor(file: str, port: int) -> None:
    """As little as a Python server can do."""
    import uvicorn

    session = session_of(file)
    name, dtype = session.get_inputs()[0].name, dtype_of(session)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message.get("more_body", False)
        (outputs,) = session.run(None, {name: np.asarray(orjson.loads(body)["inputs"], dtype)})
        answer = orjson.dumps({"outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False, lifespan="off")


if __name__ == "__main__":
    kind, file, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if kind.startswith("litserve"):
        from peers_litserve import litserve

        litserve(file, port, **({"max_batch_size": 32, "batch_timeout": 0.002} if kind == "litserve-batch" else {}))
    else:
        {"naive": naive, "floor": floor}[kind](file, port)

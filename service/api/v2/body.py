"""Bodies of the protocol: a JSON document and, behind it, the bytes of binary tensors. Knows no tensor."""

import re
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.types import Scope

from models.errors import InputError
from service.api.body import JsonRequest, read_body, while_connected
from service.api.direct import Buffer, DirectRoute
from service.problems import UnsupportedTypeError

JSON, BINARY = "application/json", "application/octet-stream"
# Says how many bytes of a body are the document, where binary tensors lie behind it.
DOCUMENT_BYTES = "Inference-Header-Content-Length"


class TensorRequest(JsonRequest):
    """A request whose body has been read: `document` and `binary` are views of it, without a copy."""

    document = memoryview(b"")
    binary = memoryview(b"")

    async def json(self) -> Any:
        """The parsed document. Raises orjson's JSONDecodeError, which FastAPI turns into a validation error."""
        return orjson.loads(self.document)

    def split(self, document_bytes: str | None) -> None:
        """Tell the document from what lies behind it. Raises InputError naming the header and what came."""
        body = memoryview(self._body)
        size = len(body) if document_bytes is None else _size(document_bytes, len(body))
        self.document, self.binary = body[:size], body[size:]


class TensorRoute(APIRoute):
    """A route that reads such bodies, of any type the protocol's clients send, and stops when its client leaves."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            read = TensorRequest(_as_json(request.scope), request.receive)
            if request.method == "POST":
                await _read(read, request.headers)
            return await while_connected(read, handler(read))

        return bounded


class DirectTensorRoute(DirectRoute):
    """The same for a route that FastAPI does not run."""

    async def read(self, request: Request) -> tuple[TensorRequest, Buffer]:
        read = TensorRequest(request.scope, request.receive)
        await _read(read, request.headers)
        return read, read.document

    def parse(self, content: Buffer) -> Any:
        return orjson.loads(content)


async def _read(request: TensorRequest, headers: Headers) -> None:
    _check_type(headers)
    await read_body(request, request.app.state.settings.max_body_bytes)
    request.split(headers.get(DOCUMENT_BYTES))


def _as_json(scope: Scope) -> Scope:
    """FastAPI reads a document only where the content type says JSON; these bodies may say otherwise or nothing."""
    others = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    return {**scope, "headers": [*others, (b"content-type", JSON.encode())]}


def _check_type(headers: Headers) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("", JSON, BINARY):
        raise UnsupportedTypeError(f"the body came as {kind!r}; send {JSON} or {BINARY}")
    encoding = headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise UnsupportedTypeError(f"the body came in the encoding {encoding[:40]!r}; send it uncompressed")


def _size(text: str, num_bytes: int) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text) or not 0 < int(text) <= num_bytes:
        raise InputError(
            f"{DOCUMENT_BYTES} is {text[:40]!r} and the body has {num_bytes} bytes; "
            "send the length of the JSON document that the body begins with"
        )
    return int(text)

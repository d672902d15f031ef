"""Routes that FastAPI describes but does not run: its routing and argument resolution cost more than a small model."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeAlias, get_type_hints

import orjson
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from models.errors import FathomError
from service.api.body import JsonRequest, JsonRoute, check_type, read_body, while_connected
from service.api.numbers import read_document
from service.problems import problem_of

Buffer: TypeAlias = bytes | memoryview
_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class DirectRoute(JsonRoute):
    """A route whose function takes nothing but its path's parameters, `body`, a pydantic model, and `request`."""

    def get_route_handler(self) -> _Handler:
        model: type[BaseModel] = get_type_hints(self.endpoint)["body"]

        async def direct(request: Request) -> Response:
            read, content = await self.read(request)
            body = _validated(model, content, self.parse)
            return await while_connected(read, self.endpoint(body=body, request=read, **request.path_params))

        return direct

    async def read(self, request: Request) -> tuple[JsonRequest, Buffer]:
        """The request with its body read, and the JSON document in it. Raises FathomError."""
        check_type(request)
        read = JsonRequest(request.scope, request.receive)
        await read_body(read, request.app.state.settings.max_body_bytes)
        return read, await read.body()

    def parse(self, content: Buffer) -> Any:
        """The document. Raises orjson's JSONDecodeError."""
        return read_document(content)


class DirectMiddleware:
    """Answers the direct routes among `routes` itself and leaves every other request to the application."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._routes = [(route, route.get_route_handler()) for route in routes if isinstance(route, DirectRoute)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._match(scope)
        if handler is None:
            await self._app(scope, receive, send)
            return
        try:
            response = await handler(Request(scope, receive))
        except (FathomError, RequestValidationError) as error:
            response = problem_of(error)
        await response(scope, receive, send)

    def _match(self, scope: Scope) -> _Handler | None:
        """The handler of a direct route; the scope says which then, and with what parameters in its path."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope.get("root_path"):
            return None
        for route, handler in self._routes:
            if match := route.path_regex.match(scope["path"]):
                scope["route"], scope["path_params"] = route, match.groupdict()
                return handler
        return None


def _validated(model: type[BaseModel], content: Buffer, parse: Callable[[Buffer], Any]) -> BaseModel:
    """The body as FastAPI would have read it. Raises RequestValidationError."""
    if not len(content):
        raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}])
    try:
        return model.model_validate(parse(content))
    except orjson.JSONDecodeError as error:
        at, reason = ("body", error.pos), {"error": error.msg}
        raise RequestValidationError([{"type": "json_invalid", "loc": at, "input": {}, "ctx": reason}]) from error
    except ValidationError as error:
        found = [{**entry, "loc": ("body", *entry["loc"])} for entry in error.errors(include_url=False)]
        raise RequestValidationError(found) from error

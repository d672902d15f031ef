"""Routes that FastAPI describes but does not run: its routing and argument resolution cost more than a small model."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, get_type_hints

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

_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class DirectRoute(JsonRoute):
    """A route whose function takes nothing but `body`, a pydantic model, and `request`."""

    def get_route_handler(self) -> _Handler:
        model: type[BaseModel] = get_type_hints(self.endpoint)["body"]

        async def direct(request: Request) -> Response:
            check_type(request)
            read = JsonRequest(request.scope, request.receive)
            await read_body(read, request.app.state.settings.max_body_bytes)
            body = _validated(model, await read.body())
            return await while_connected(read, self.endpoint(body, read))

        return direct


class DirectMiddleware:
    """Answers the direct routes among `routes` itself and leaves every other request to the application."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        direct = [route for route in routes if isinstance(route, DirectRoute)]
        self._routes = {(method, route.path): route for route in direct for method in route.methods or ()}
        self._handlers = {key: route.get_route_handler() for key, route in self._routes.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = (scope.get("method"), scope.get("path"))
        if scope["type"] != "http" or scope.get("root_path") or key not in self._handlers:
            await self._app(scope, receive, send)
            return
        scope["route"] = self._routes[key]
        try:
            response = await self._handlers[key](Request(scope, receive))
        except (FathomError, RequestValidationError) as error:
            response = problem_of(error)
        await response(scope, receive, send)


def _validated(model: type[BaseModel], content: bytes) -> BaseModel:
    """The body as FastAPI would have read it. Raises RequestValidationError."""
    if not content:
        raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}])
    try:
        return model.model_validate(read_document(content))
    except orjson.JSONDecodeError as error:
        at, reason = ("body", error.pos), {"error": error.msg}
        raise RequestValidationError([{"type": "json_invalid", "loc": at, "input": {}, "ctx": reason}]) from error
    except ValidationError as error:
        found = [{**entry, "loc": ("body", *entry["loc"])} for entry in error.errors(include_url=False)]
        raise RequestValidationError(found) from error

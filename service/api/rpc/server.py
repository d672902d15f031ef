"""The gRPC server: a port, the methods behind it, and draining. On the event loop of the HTTP server."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, TypeAlias

import grpc
from fastapi import FastAPI
from grpc_health.v1 import health_pb2

from models.errors import NotFoundError
from service.api.rpc import open_inference_pb2 as pb
from service.api.rpc.calls import Calls
from service.api.rpc.methods import SERVICE, Methods
from service.settings import Settings

_log = logging.getLogger("fathom.grpc")
_HEALTH = "grpc.health.v1.Health"
# By name: the request's type, and the method.
_Table: TypeAlias = Mapping[str, tuple[Any, Any]]


class RpcServer:
    """A server that has been started."""

    def __init__(self, server: Any, port: int) -> None:
        self._server, self.port = server, port
        self._closing: list[asyncio.Future[None]] = []

    @classmethod
    async def start(cls, app: FastAPI) -> "RpcServer":
        """Listen on the port of the app's settings. Raises RuntimeError if it is taken."""
        settings: Settings = app.state.settings
        server = grpc.aio.server(options=_options(settings))
        server.add_generic_rpc_handlers(_handlers(app))
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        port = server.add_insecure_port(f"{host}:{settings.grpc_port}")
        await server.start()
        _log.info("listening for gRPC", extra={"fields": {"grpc_address": f"{settings.host}:{port}"}})
        return cls(server, port)

    def close_within(self, seconds: float) -> None:
        """Take nothing new, and cancel what is not done in that time; the shortest of several times holds."""
        self._closing.append(asyncio.ensure_future(self._server.stop(seconds)))

    async def closed(self) -> None:
        """Return once nothing is in flight, closing at once if nobody has yet."""
        if not self._closing:
            self.close_within(0)
        await asyncio.gather(*self._closing)


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # a port that is taken is an error
    ]


def _handlers(app: FastAPI) -> tuple[Any, ...]:
    state = app.state
    methods, calls = Methods(app), Calls(state.metrics, state.lifecycle, state.settings.max_request_s)
    # Answered while draining, too.
    operations: _Table = {
        "ServerLive": (pb.ServerLiveRequest, methods.server_live),
        "ServerReady": (pb.ServerReadyRequest, methods.server_ready),
    }
    unary: _Table = {
        "ModelReady": (pb.ModelReadyRequest, methods.model_ready),
        "ServerMetadata": (pb.ServerMetadataRequest, methods.server_metadata),
        "ModelMetadata": (pb.ModelMetadataRequest, methods.model_metadata),
        "ModelInfer": (pb.ModelInferRequest, methods.model_infer),
        "ModelStatistics": (pb.ModelStatisticsRequest, methods.model_statistics),
        "RepositoryIndex": (pb.RepositoryIndexRequest, methods.repository_index),
        "RepositoryModelLoad": (pb.RepositoryModelLoadRequest, methods.repository_model_load),
        "RepositoryModelUnload": (pb.RepositoryModelUnloadRequest, methods.repository_model_unload),
    }
    streams = grpc.stream_stream_rpc_method_handler(
        calls.stream(f"/{SERVICE}/ModelStreamInfer", methods.model_stream_infer),
        request_deserializer=pb.ModelInferRequest.FromString,
        response_serializer=_as_bytes,
    )
    inference = {
        **_unary(calls, SERVICE, operations, always=True),
        **_unary(calls, SERVICE, unary, always=False),
        "ModelStreamInfer": streams,
    }
    health = _unary(calls, _HEALTH, {"Check": (health_pb2.HealthCheckRequest, _check(methods))}, always=True)
    return (
        grpc.method_handlers_generic_handler(SERVICE, inference),
        grpc.method_handlers_generic_handler(_HEALTH, health),
    )


def _unary(calls: Calls, service: str, methods: _Table, always: bool) -> dict[str, Any]:
    return {
        name: grpc.unary_unary_rpc_method_handler(
            calls.unary(f"/{service}/{name}", method, always),
            request_deserializer=request.FromString,
            response_serializer=_as_bytes,
        )
        for name, (request, method) in methods.items()
    }


def _check(methods: Methods) -> Any:
    async def check(request: Any) -> Any:
        if request.service not in ("", SERVICE):
            raise NotFoundError(f"there is no service {request.service!r:.60}; ask for {SERVICE}, or for none")
        states = health_pb2.HealthCheckResponse
        return states(status=states.SERVING if await methods.is_ready() else states.NOT_SERVING)

    return check


def _as_bytes(message: Any) -> bytes:
    serialized: bytes = message.SerializeToString()
    return serialized

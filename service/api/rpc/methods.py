"""The methods of inference.GRPCInferenceService: each asks what the route of /v2 of the same meaning asks."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from fastapi import FastAPI

from models.errors import InputError, UnavailableError, UnknownModelError
from service.api import health
from service.api.rpc import messages
from service.api.rpc import open_inference_pb2 as pb
from service.api.rpc.calls import said_of
from service.api.v2 import infer, models, repository, statistics, texts
from service.api.v2.generate import in_pieces
from service.api.v2.schemas import IndexRequest
from service.engine.language import LanguageEngine
from service.repository.slots import Holding

SERVICE = "inference.GRPCInferenceService"


class Methods:
    """Answers calls with what the application has."""

    def __init__(self, app: FastAPI) -> None:
        self._version, self._state = app.version, app.state

    async def server_live(self, request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        """The process lives."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        """At least one model serves, none is loading, and the server is not draining."""
        return pb.ServerReadyResponse(ready=await self.is_ready())

    async def is_ready(self) -> bool:
        """Whether the server serves."""
        return (await health.ready(self._state.registry, self._state.lifecycle)).status_code == 200

    async def model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        """The model serves."""
        try:
            self._state.registry.check(request.name, request.version or None)
        except (UnknownModelError, UnavailableError):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def server_metadata(self, request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        """Name, version and extensions of the server."""
        return messages.message_of(models.metadata(self._version), pb.ServerMetadataResponse)

    async def model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        """Inputs and outputs of a version, the latest by default."""
        found = await models.model_metadata(request.name, self._state.registry, request.version or None)
        return messages.message_of(found, pb.ModelMetadataResponse)

    async def model_infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        """Run every row along its chain."""
        state = self._state
        body = messages.body_of(request)
        engine = await infer.engine_of(request.model_name, request.model_version, body.parameters, state.registry)
        told = await infer.answer(body, messages.data_of(request), engine, state.settings, state.memory)
        response: pb.ModelInferResponse = messages.response_of(request, body, engine, told)
        return response

    async def model_stream_infer(
        self, requests: AsyncIterator[pb.ModelInferRequest]
    ) -> AsyncGenerator[pb.ModelStreamInferResponse]:
        """Answer requests in order, a text in pieces; what fails is told and does not end the stream."""
        async for request in requests:
            try:
                with Holding():
                    async with aclosing(self._streamed(request)) as responses:
                        async for response in responses:
                            yield pb.ModelStreamInferResponse(infer_response=response)
            except Exception as error:
                failed = pb.ModelInferResponse(id=request.id, model_name=request.model_name)
                yield pb.ModelStreamInferResponse(error_message=said_of(error), infer_response=failed)

    async def _streamed(self, request: pb.ModelInferRequest) -> AsyncGenerator[pb.ModelInferResponse]:
        engine = await self._state.registry.get(request.model_name, request.model_version or None)
        if not isinstance(engine, LanguageEngine):
            yield await self.model_infer(request)
            return
        prompts = texts.read(messages.body_of(request).inputs, messages.data_of(request), max_texts=1)
        body = messages.generate_body_of(request, prompts[0])
        async with aclosing(in_pieces(body, engine, self._state.memory)) as pieces:
            async for piece in pieces:
                yield messages.piece_of(piece)

    async def model_statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        """What the metrics know of one model, or of all."""
        registry, metrics = self._state.registry, self._state.metrics
        if request.name:
            found = await statistics.model_statistics(request.name, registry, metrics, request.version or None)
        else:
            found = await statistics.all_statistics(registry, metrics)
        return messages.message_of(found, pb.ModelStatisticsResponse)

    async def repository_index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        """Every version in the repository, or those that serve."""
        _check_repository(request.repository_name)
        found = await repository.index(self._state.registry, IndexRequest(ready=request.ready))
        listed = {"models": [entry.model_dump() for entry in found]}
        return messages.message_of(listed, pb.RepositoryIndexResponse)

    async def repository_model_load(self, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        """Load the latest version; answers when it is ready."""
        _check_repository(request.repository_name)
        if request.parameters:
            raise InputError(f"parameters {sorted(request.parameters)} came; a model is what its manifest says")
        await repository.load(request.model_name, self._state.registry)
        return pb.RepositoryModelLoadResponse()

    async def repository_model_unload(
        self, request: pb.RepositoryModelUnloadRequest
    ) -> pb.RepositoryModelUnloadResponse:
        """Unload every version, once it has answered what it accepted."""
        _check_repository(request.repository_name)
        if foreign := sorted(set(request.parameters) - {"unload_dependents"}):
            raise InputError(f"parameters {foreign} came; unloading takes unload_dependents, and nothing depends here")
        await repository.unload(request.model_name, self._state.registry)
        return pb.RepositoryModelUnloadResponse()


def _check_repository(name: str) -> None:
    if name:
        raise InputError(f"repository {name!r:.60} was named; there is one, so leave the name out")

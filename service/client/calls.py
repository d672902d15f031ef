"""Every call a client can make, as data: what is sent, and how its answer is read. Sends nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
import orjson

from service.client import binary, reading
from service.client.asking import Inputs, predict_body, search_body
from service.client.errors import ClientError, error_of, read_problem
from service.client.results import Array, Health, ModelInfo, Prediction, Search, Tensor
from service.client.retry import Attempts, retry_after_s

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One call. `is_repeatable`: asking twice does no harm. `asked` has what the caller said of time and urgency."""

    path: str
    read: Callable[[httpx.Response], T]
    method: str = "GET"
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)
    is_repeatable: bool = True

    def request_headers(self, attempts: Attempts) -> dict[str, str]:
        """The headers of the next try: its own, and the terms of the call."""
        headers = dict(self.headers)
        if (told_s := attempts.told_s()) is not None:
            headers["x-request-timeout"] = f"{max(told_s, 1e-6):.6f}"
        if priority := self.asked.get("priority"):
            headers["x-request-priority"] = str(priority)
        return headers


def predict(model: str, inputs: Inputs, asked: Mapping[str, Any]) -> Call[Prediction]:
    """POST /predict."""
    is_repeatable = not asked.get("session")  # steps would be read twice
    body = predict_body(model, inputs, asked)
    return _post("/predict", body, lambda r: reading.prediction(_document(r)), asked, is_repeatable)


def infer(
    model: str, inputs: Array | Mapping[str, Array], takes: tuple[Tensor, ...], asked: Mapping[str, Any]
) -> Call[Prediction]:
    """POST /v2/models/{model}/infer, arrays as bytes both ways. Raises InvalidError."""
    ran = {name: asked[name] for name in ("chain", "depth") if asked.get(name) is not None}
    content, headers = binary.pack(inputs, takes, ran)

    def read(response: httpx.Response) -> Prediction:
        size, request_id = response.headers[binary.DOCUMENT_BYTES], response.headers["x-request-id"]
        return binary.unpack(response.content, size, request_id)

    return Call(f"{_v2(model, asked)}/infer", read, "POST", content, headers, asked)


def takes(model: str, asked: Mapping[str, Any]) -> Call[tuple[Tensor, ...]]:
    """GET /v2/models/{model}: its inputs."""
    return Call(_v2(model, asked), lambda r: reading.tensors(_document(r)["inputs"]), asked=asked)


def stream(model: str, prompt: Inputs, asked: Mapping[str, Any]) -> Call[None]:
    """POST /predict, answered token by token."""
    return _post("/predict", {**predict_body(model, prompt, asked), "stream": True}, lambda r: None, asked)


def search(model: str, sample: Any, asked: Mapping[str, Any]) -> Call[Search]:
    """POST /cola/search for one sample."""
    is_repeatable = not asked.get("remember")
    body = search_body(model, sample, asked)
    return _post("/cola/search", body, lambda r: reading.search(_document(r)), asked, is_repeatable)


def models(asked: Mapping[str, Any]) -> Call[tuple[ModelInfo, ...]]:
    """GET /models."""
    return Call("/models", lambda r: tuple(map(reading.model_info, _document(r))), asked=asked)


def load(model: str, version: str | None, asked: Mapping[str, Any]) -> Call[ModelInfo]:
    """POST /models/{model}/load."""
    return Call(_change(model, "load", version), lambda r: reading.model_info(_document(r)), "POST", asked=asked)


def unload(model: str, version: str | None, asked: Mapping[str, Any]) -> Call[None]:
    """POST /models/{model}/unload."""
    return Call(_change(model, "unload", version), lambda r: None, "POST", asked=asked)


def ready() -> Call[Health]:
    """GET /health/ready."""
    return Call("/health/ready", lambda r: Health(live=True, ready=True))


def metrics() -> Call[str]:
    """GET /metrics."""
    return Call("/metrics", lambda r: r.text)


def check(response: httpx.Response) -> None:
    """Raise the ProblemError of a response that is none of success. Its body must have been read."""
    if not response.is_success:
        headers = response.headers
        told_s = retry_after_s(headers.get("retry-after"))
        raise error_of(read_problem(response.status_code, response.content, headers.get("x-request-id", ""), told_s))


def _document(response: httpx.Response) -> Any:
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError as error:
        raise ClientError(f"{response.url} answered {response.status_code} with no JSON; is it this server?") from error


def _post(
    path: str,
    body: object,
    read: Callable[[httpx.Response], T],
    asked: Mapping[str, Any],
    is_repeatable: bool = True,
) -> Call[T]:
    content = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    return Call(path, read, "POST", content, {"content-type": "application/json"}, asked, is_repeatable)


def _v2(model: str, asked: Mapping[str, Any]) -> str:
    version = asked.get("version")
    return f"/v2/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")


def _change(model: str, verb: str, version: str | None) -> str:
    return f"/models/{quote(model, safe='')}/{verb}" + (f"?version={quote(version, safe='')}" if version else "")

"""The app: its OpenAPI document, pinned. A test that fails prints how to write the new one."""

import json
from pathlib import Path
from typing import Any

from service.app import create_app
from service.settings import Settings

PINNED = Path(__file__).parent / "openapi.json"
WRITE = "python -c 'import tests.service.test_app as pin; pin.write()'"


def openapi() -> Any:
    """The document, without the version, which changes with every release."""
    document = create_app(Settings()).openapi()
    document["info"].pop("version")
    return json.loads(json.dumps(document))


def write() -> None:
    """Pin the document as it is now; look at the difference before committing it."""
    PINNED.write_text(json.dumps(openapi(), indent=1, ensure_ascii=False) + "\n")


def test_openapi_is_the_pinned_document() -> None:
    assert openapi() == json.loads(PINNED.read_text()), f"the contract changed; if that is meant: {WRITE}"


def test_every_route_is_described() -> None:
    described = {(method, path) for path, item in openapi()["paths"].items() for method in item}
    assert described >= {
        ("post", "/predict"),
        ("post", "/cola/search"),
        ("get", "/models"),
        ("get", "/models/{model}"),
        ("post", "/models/{model}/load"),
        ("post", "/models/{model}/unload"),
        ("get", "/health/live"),
        ("get", "/health/ready"),
        ("get", "/metrics"),
    }


def test_docs_are_served(server: Any) -> None:
    assert server.client.get("/docs").status_code == 200
    assert server.client.get("/openapi.json").json()["paths"] == openapi()["paths"]


def test_a_method_that_is_not_served_is_told_those_that_are(server: Any) -> None:
    assert server.client.put("/cola/jobs").headers["allow"] == "GET, POST"
    assert server.client.put("/cola/jobs/one").headers["allow"] == "DELETE, GET"
    assert server.client.put("/v1/models/tinylm:predict").headers["allow"] == "POST"

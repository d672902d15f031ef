"""The torch-free image, really built and run: `make image-test`, with docker or podman.

`ENGINE`, `BUILD_ARGS` and `RUN_ARGS` in the environment adapt it to the machine.
"""

import json
import os
import shlex
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ENGINE = shlex.split(os.environ.get("ENGINE", "docker"))
BUILD_ARGS = shlex.split(os.environ.get("BUILD_ARGS", ""))
RUN_ARGS = shlex.split(os.environ.get("RUN_ARGS", ""))
IMAGE = "fathom-serving:image-test"
START_S = 60

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]


def engine(*arguments: str) -> str:
    """What docker or podman prints, logs included."""
    result = subprocess.run([*ENGINE, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return (result.stdout + result.stderr).strip()


def fetch(url: str, body: Any = None) -> Any:
    """The JSON that a server answers."""
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


@pytest.fixture(scope="module")
def image() -> str:
    engine("build", "--target", "onnx", "--tag", IMAGE, *BUILD_ARGS, str(ROOT))
    return IMAGE


@pytest.fixture(scope="module")
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number: int = listener.getsockname()[1]
    return number


@pytest.fixture(scope="module")
def container(image: str, port: int) -> Iterator[str]:
    """Name of a container that may write nowhere but to /tmp."""
    name = f"fathom-image-test-{port}"
    limits = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "all", "--security-opt", "no-new-privileges"]
    listen = ["--publish", f"127.0.0.1:{port}:{port}", "--env", f"FATHOM_PORT={port}"]
    engine("run", "--detach", "--name", name, *limits, *listen, *RUN_ARGS, image)
    yield name
    engine("rm", "--force", name)


@pytest.fixture(scope="module")
def server(container: str, port: int) -> str:
    """Address of the server, once it is ready."""
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            fetch(f"{url}/health/ready")
        except OSError:
            time.sleep(0.2)
        else:
            return url
    pytest.fail(engine("logs", container))


def test_image_has_no_torch_and_no_root(server: str, container: str) -> None:
    code = "import os, importlib.util as u; print(os.getuid(), u.find_spec('torch'), u.find_spec('onnxruntime').name)"
    assert engine("exec", container, "python", "-c", code) == "10001 None onnxruntime"


def test_health_check_of_the_image_passes(server: str, container: str) -> None:
    (description,) = json.loads(engine("image", "inspect", IMAGE))
    _, *command = (description.get("Healthcheck") or description["Config"]["Healthcheck"])["Test"]
    engine("exec", container, *command)


def test_image_answers_along_a_chain(server: str) -> None:
    problem = json.loads((ROOT / "models/checkpoints/arith/heldout.jsonl").read_text().splitlines()[0])
    (full,) = fetch(f"{server}/predict", {"model": "arith", "inputs": [problem["prompt"]]})["outputs"]
    chain = [*full["chain"][:4], *full["chain"][3:]]
    body = {"model": "arith", "inputs": [problem["prompt"]], "chain": chain}
    (looped,) = fetch(f"{server}/predict", body)["outputs"]
    assert full["text"]
    assert looped["chain"] == chain
    assert looped["layers_executed"] % len(chain) == 0


def test_stopped_container_exits_cleanly(server: str, container: str) -> None:
    engine("stop", "--time", "20", container)
    (description,) = json.loads(engine("inspect", container))
    assert description["State"]["ExitCode"] == 0

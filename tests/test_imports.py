"""The arrows between the packages: who may import whom, read from the sources without running them."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WEB = ("fastapi", "starlette", "uvicorn")
RUNTIMES = ("torch", "onnxruntime")
# Time and memory of a server's start that most servers would never make use of.
LATE = (*RUNTIMES, "httpx", "matplotlib", "ray", "rich", "sqlalchemy", "tokenizers", "transformers")

# importer: what it must not import. Each line also holds for everything below the importer.
FORBIDDEN = {
    "models": ("exporters", "service", "training", *WEB),
    "exporters": ("service", "training", *WEB),
    "training": ("service", "exporters", *WEB),
    "service": ("exporters", "training", "fathom"),
    "fathom": ("models", "exporters", "training"),
    "service.backends": ("service.api", "service.engine", "service.cola", *WEB),
    "service.engine": ("service.api", "service.cola", *WEB),
    "service.cola": ("service.api", *WEB),
    "service.api": ("service.backends",),
    "service.client": (
        *(f"service.{name}" for name in ("api", "backends", "cola", "engine", "registry", "settings")),
        *WEB,
        "pydantic",
    ),
}
# Policy is tested without any runtime: beside the standard library these import only each other.
PURE = (
    "models.chain",
    "models.errors",
    "models.lm.residual",
    "models.parallel.latency",
    "models.parallel.stages",
    "models.parallel.timeline",
    "service.engine.admission",
    "service.engine.history",
    "service.engine.pages",
    "service.engine.plan",
    "service.cola.ledger",
    "service.cola.mcts",
    "service.cola.node",
    "service.cola.ordered",
    "service.cola.released",
    "service.cola.space",
    "service.cola.spaces",
)


def imported(source: str, module: str) -> Iterator[str]:
    """Full names of the modules that `source` names in imports, those for type checkers included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.rsplit(".", node.level)[0] if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def violations(module: str, source: str) -> list[str]:
    """What `module` imports and must not."""
    names = set(imported(source, module))
    bad = {name for name in names for owner in FORBIDDEN if within(module, (owner,)) if within(name, FORBIDDEN[owner])}
    if module.startswith("service.") and not within(module, ("service.backends",)):
        bad |= {name for name in names if within(name, RUNTIMES)}
    if module in PURE:
        bad |= {name for name in names if not within(name, (*PURE, *sys.stdlib_module_names))}
    return sorted(f"{module} imports {name}" for name in bad)


def sources() -> Iterator[tuple[str, str]]:
    for package in ("fathom", "models", "exporters", "training", "service"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path.read_text()


def test_arrows_between_packages_hold() -> None:
    found = dict(sources())
    assert set(PURE) <= set(found)
    assert [line for module, source in found.items() for line in violations(module, source)] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("exporters.onnx", "import service.settings"),
        ("service.app", "from exporters import verify"),
        ("training.digits", "from exporters.cli import export"),
        ("service.engine.executor", "def run():\n    import torch.nn"),
        ("service.engine.batcher", "from ..api import predict"),
        ("service.metrics", "from onnxruntime import InferenceSession"),
        (
            "service.api.predict",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from service import backends",
        ),
        ("service.engine.plan", "import numpy"),
        ("service.cola.mcts", "from service.cola import search"),
        ("service.client.calls", "from service.api import schemas"),
    ],
)
def test_planted_violation_is_found(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


def test_server_starts_without_what_no_request_has_asked_for() -> None:
    code = f"import sys, service.server, service.cli, exporters.cli; print(*{set(LATE)} & sys.modules.keys())"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []


def test_client_loads_nothing_of_the_server() -> None:
    code = (
        "import sys, fathom, service; "
        "assert not [name for name in sys.modules if name.startswith(('service.', 'numpy', 'httpx'))]; "
        "fathom.Client; fathom.AsyncClient; "
        f"print(*{{*{RUNTIMES + WEB!r}, 'pydantic', 'service.engine', 'service.api'}} & sys.modules.keys())"
    )
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []


def test_every_name_offered_is_there() -> None:
    import fathom
    import service

    assert all(getattr(fathom, name) for name in dir(fathom))
    assert {"AsyncClient", "Client", "bind", "load", "serve"} <= set(dir(fathom))
    for module in (fathom, service):
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            getattr(module, "nothing")  # noqa: B009

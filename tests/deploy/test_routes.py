"""Every path that a deployment asks for is one that the server has."""

import re
from pathlib import Path

import pytest

from service.app import create_app
from service.settings import Settings

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["Dockerfile", "docker-compose.yml", "k8s/base/deployment.yaml"])
def test_asked_path_is_a_route(name: str) -> None:
    asked = set(re.findall(r"""["' ](/health/\w+)""", (ROOT / name).read_text()))
    assert asked
    assert asked <= create_app(Settings()).openapi()["paths"].keys()


def test_metrics_are_where_prometheus_looks() -> None:
    assert "/metrics" in create_app(Settings()).openapi()["paths"]

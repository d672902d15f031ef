"""`docker-compose.yml` and the Prometheus it starts: they fit each other and the image."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import read_settings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
PROMETHEUS = ROOT / "deploy/prometheus.yml"
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.fixture
def services() -> Any:
    return yaml.safe_load(COMPOSE.read_text())["services"]


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="docker-compose is not installed")
def test_compose_accepts_the_file() -> None:
    subprocess.run(["docker-compose", "--file", COMPOSE, "--profile", "gpu", "config", "--quiet"], check=True)


def test_default_is_the_server_and_prometheus(services: Any) -> None:
    assert [name for name, service in services.items() if "profiles" not in service] == ["fathom", "prometheus"]


@pytest.mark.parametrize("name", ["fathom", "fathom-gpu"])
def test_server_is_built_from_a_target_and_published(services: Any, name: str) -> None:
    service = services[name]
    assert re.search(rf"^FROM .* AS {service['build']['target']}$", DOCKERFILE, re.MULTILINE)
    (port,) = service["ports"]
    assert f"EXPOSE {port.split(':')[-1]}" in DOCKERFILE
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]


def test_only_the_gpu_profile_asks_for_a_gpu(services: Any) -> None:
    (device,) = services["fathom-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert services["fathom-gpu"]["profiles"] == ["gpu"]
    assert "deploy" not in services["fathom"]


def test_health_check_asks_for_readiness(services: Any) -> None:
    kind, program, option, code = services["fathom"]["healthcheck"]["test"]
    assert (kind, program, option) == ("CMD", "python", "-c")
    compile(code, "healthcheck", "exec")
    assert '"/health/ready"' in code
    assert re.findall(r"127.0.0.1., (\d+)", code) == re.findall(r"^EXPOSE (\d+)", DOCKERFILE, re.MULTILINE)


@pytest.mark.parametrize("name", ["fathom", "fathom-gpu"])
def test_remembered_chains_lie_on_a_volume_the_server_owns(services: Any, name: str) -> None:
    memory = Path(read_settings(services[name]["environment"]).memory)
    volumes = dict(volume.split(":")[:2] for volume in services[name]["volumes"])
    assert str(memory.parent) in volumes.values()
    assert re.search(rf"--owner=fathom .*{memory.parent}$", DOCKERFILE, re.MULTILINE)


def test_prometheus_waits_for_the_server(services: Any) -> None:
    assert services["prometheus"]["depends_on"] == {"fathom": {"condition": "service_healthy"}}


def test_every_mounted_file_is_there(services: Any) -> None:
    paths = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())]
    files = [path for path in paths if path.startswith(".")]
    assert files
    assert all((ROOT / path).is_file() for path in files)


def test_every_image_has_a_version(services: Any) -> None:
    images = [service["image"] for service in services.values() if "image" in service]
    assert all(re.search(r":v?\d+\.\d+", image) for image in images)


def test_prometheus_scrapes_every_server_of_the_compose_file(services: Any) -> None:
    (job,) = yaml.safe_load(PROMETHEUS.read_text())["scrape_configs"]
    (discovery,) = job["dns_sd_configs"]
    assert discovery["names"] == [name for name, service in services.items() if "build" in service]
    assert {service["ports"][0].split(":")[-1] for service in services.values() if "build" in service} == {
        str(discovery["port"])
    }
    assert job.get("metrics_path", "/metrics") == "/metrics"


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_prometheus_accepts_its_configuration() -> None:
    subprocess.run(["promtool", "check", "config", PROMETHEUS], check=True, capture_output=True)

"""The manifests under `k8s/base`: accepted by the schemas, and true to the server they run."""

import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.settings import read_settings

ROOT = Path(__file__).parents[2]
BASE = ROOT / "k8s/base"
FILES = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]


def load(name: str) -> Any:
    return yaml.safe_load((BASE / name).read_text())


@pytest.fixture
def pod() -> Any:
    return load("deployment.yaml")["spec"]["template"]["spec"]


@pytest.fixture
def container(pod: Any) -> Any:
    (container,) = pod["containers"]
    return container


def test_every_manifest_is_listed() -> None:
    assert sorted(path.name for path in BASE.glob("*.yaml")) == sorted([*FILES, "kustomization.yaml"])


@pytest.mark.parametrize("name", FILES)
def test_manifest_is_one_object_that_fits_its_schema(name: str) -> None:
    manifest = load(name)
    assert manifest["kind"].lower() == Path(name).stem
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_schema_refuses_a_misspelt_field(pod: Any) -> None:
    manifest = load("deployment.yaml")
    manifest["spec"]["template"]["spec"] = {**pod, "terminationGracePeriod": 60}
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_kustomize_builds_every_object() -> None:
    built = subprocess.run(["kubectl", "kustomize", BASE], capture_output=True, text=True, check=True).stdout
    kinds = {document["kind"].lower() for document in yaml.safe_load_all(built)}
    assert kinds == {Path(name).stem for name in FILES}


def test_names_and_ports_lead_to_the_container(container: Any) -> None:
    deployment, service, configmap = (load(name) for name in ("deployment.yaml", "service.yaml", "configmap.yaml"))
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
    assert [entry["targetPort"] for entry in service["spec"]["ports"]] == list(ports)
    settings = configmap["data"]
    assert ports == {"http": settings["FATHOM_PORT"], "grpc": settings["FATHOM_GRPC_PORT"]}
    assert container["envFrom"] == [{"configMapRef": {"name": configmap["metadata"]["name"]}}]


def test_every_setting_exists_and_is_valid() -> None:
    read_settings(load("configmap.yaml")["data"])


def test_image_is_this_version(container: Any) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert container["image"].split(":")[1].split("-")[0] == version


def test_service_name_cannot_override_a_setting(pod: Any) -> None:
    # Kubernetes sets <NAME>_PORT in the pods of a namespace for each of its services; ours is called fathom.
    assert pod["enableServiceLinks"] is False


def test_probes_ask_what_they_mean(container: Any) -> None:
    asked = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert asked == {
        "startupProbe": "/health/ready",
        "livenessProbe": "/health/live",
        "readinessProbe": "/health/ready",
    }


def test_pod_may_finish_what_it_accepted(pod: Any, container: Any) -> None:
    sleep_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = read_settings(load("configmap.yaml")["data"]).drain_s
    assert pod["terminationGracePeriodSeconds"] > sleep_s + drain_s

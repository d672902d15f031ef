"""The manifests under `k8s/base`: accepted by the schemas, and true to the server they run."""

import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.parallel.address import parse_address
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


# Overlays: ranks in one pod, and on several nodes.

OVERLAYS = ROOT / "k8s/overlays"
needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")


def built(overlay: str) -> dict[str, Any]:
    """What kustomize makes of an overlay, by kind."""
    command = ["kubectl", "kustomize", OVERLAYS / overlay]
    documents = yaml.safe_load_all(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {document["kind"]: document for document in documents}


def pods(overlay: str) -> list[Any]:
    """The templates of its pods."""
    found = built(overlay)
    if "Deployment" in found:
        return [found["Deployment"]["spec"]["template"]]
    group = found["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"]
    return [group["leaderTemplate"], group["workerTemplate"]]


@needs_kubectl
@pytest.mark.parametrize("overlay", sorted(path.name for path in OVERLAYS.iterdir()))
def test_overlay_fits_the_schemas_and_the_settings(overlay: str) -> None:
    found = built(overlay)
    read_settings(found["ConfigMap"]["data"])
    for document in found.values():
        if document["apiVersion"] in ("v1", "apps/v1"):
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    for template in pods(overlay):
        metadata = {"name": "pod", **template["metadata"]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


@needs_kubectl
@pytest.mark.parametrize("overlay", sorted(path.name for path in OVERLAYS.iterdir()))
def test_ranks_have_what_they_wait_for(overlay: str) -> None:
    settings, shared = read_settings(built(overlay)["ConfigMap"]["data"]), 0
    for template in pods(overlay):
        for container in template["spec"]["containers"]:
            resources = container["resources"]
            gpus = int(resources["limits"].get("nvidia.com/gpu", 0))
            shared += gpus
            if gpus:
                assert resources["requests"] == resources["limits"]
                assert float(resources["requests"]["cpu"]) >= 2 * gpus
                assert "/dev/shm" in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert shared == settings.tensor_parallel * settings.pipeline_parallel
    assert settings.step_deadline_s < settings.group_timeout_s < (settings.max_request_s or 0)


@needs_kubectl
def test_pod_of_ranks_gives_its_gpus_back_before_the_next_one_starts() -> None:
    deployment = built("tensor-parallel")["Deployment"]
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 10 + 30


@needs_kubectl
def test_ranks_of_all_nodes_come_to_the_server() -> None:
    found = built("nodes")
    settings, group = (
        read_settings(found["ConfigMap"]["data"]),
        found["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"],
    )
    leader, worker = ({one["name"]: one for one in template["spec"]["containers"]} for template in pods("nodes"))
    assert leader["ranks"] == worker["ranks"]
    assert worker.keys() == {"ranks"}
    options = dict(one.removeprefix("--").split("=", 1) for one in worker["ranks"]["command"] if "=" in one)
    assert group["size"] * int(options["nproc-per-node"]) == settings.tensor_parallel * settings.pipeline_parallel
    assert options["nnodes"] == "$(LWS_GROUP_SIZE)"
    address = parse_address(str(settings.ranks_address))
    assert options["control"] == f"tcp://$(LWS_LEADER_ADDRESS):{address.port}"
    assert address.port in {port["containerPort"] for port in leader["fathom"]["ports"]}
    assert options["secret"] == str(settings.ranks_secret)
    assert options["repository"] == str(settings.repository)
    selector = found["Service"]["spec"]["selector"]
    assert selector.pop("leaderworkerset.sigs.k8s.io/worker-index") == "0"
    assert selector.items() <= group["leaderTemplate"]["metadata"]["labels"].items()

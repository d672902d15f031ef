"""Known security mistakes in the Dockerfile and the manifests, looked for by checkov without a network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Takes `FROM scratch` for an image without a version; `test_dockerfile.py` checks versions.
DOCKERFILE_SKIPPED = "CKV_DOCKER_7"
# Who deploys chooses the namespace, who may reach it, and the digest of what they built; a version is pulled once.
KUBERNETES_SKIPPED = "CKV_K8S_21,CKV2_K8S_6,CKV_K8S_43,CKV_K8S_15"


@pytest.mark.parametrize(
    ("framework", "target", "skipped"),
    [
        ("dockerfile", ["--file", "Dockerfile"], DOCKERFILE_SKIPPED),
        ("kubernetes", ["--directory", "k8s/base"], KUBERNETES_SKIPPED),
    ],
)
def test_no_known_mistake(framework: str, target: list[str], skipped: str) -> None:
    checkov = str(Path(sys.executable).with_name("checkov"))
    command = [checkov, "--skip-download", "--framework", framework, *target, "--skip-check", skipped]
    result = subprocess.run([*command, "--output", "json"], cwd=ROOT, capture_output=True, text=True, check=False)
    report = json.loads(result.stdout)
    assert [f"{check['check_name']}: {check['resource']}" for check in report["results"]["failed_checks"]] == []
    assert report["summary"]["passed"] > 50

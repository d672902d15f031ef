"""What the Dockerfile promises: targets, a user without rights, a health check, nothing secret left behind."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def stage(name: str) -> str:
    """Instructions of one stage, continued lines joined."""
    text = DOCKERFILE.replace("\\\n", " ")
    match = re.search(rf"^FROM \S+ AS {name}$(.*?)(?=^FROM |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, name
    return match[1]


def test_cpu_is_the_default_target() -> None:
    targets = re.findall(r"^FROM runtime AS (\w+)$", DOCKERFILE, re.MULTILINE)
    assert targets == ["onnx", "gpu", "cpu"]


def test_torch_free_image_takes_nothing_from_the_torch_build() -> None:
    copied = re.findall(r"--from=(\S+) (\S+)", stage("runtime") + stage("onnx"))
    assert copied == [("build-cpu", "/repository"), ("build-onnx", "/opt/fathom")]
    assert "'.[onnx,grpc]'" in stage("build-onnx")


def test_every_base_image_has_a_version() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    bases = set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) - stages
    assert bases == {"scratch", "${BASE}"}
    assert re.search(r"^ARG BASE=\S+:\d+\.\d+\S*$", DOCKERFILE, re.MULTILINE)


def test_server_has_no_rights_and_a_health_check() -> None:
    runtime = stage("runtime")
    assert re.search(r"^USER 10001:10001$", runtime, re.MULTILINE)
    assert "USER root" not in DOCKERFILE
    check = re.search(r"^HEALTHCHECK .*CMD (\[.*\])$", runtime, re.MULTILINE)
    assert check
    program, option, code = json.loads(check[1])
    assert (program, option) == ("python", "-c")
    compile(code, "healthcheck", "exec")
    assert "'/health/live'" in code


def test_secrets_are_mounted_and_never_stored() -> None:
    assert not re.search(r"(?i)(token|password|secret|api_key)\s*=", DOCKERFILE)
    assert "PIP_CERT" not in stage("runtime")
    for mount in re.findall(r"--mount=type=secret\S*", DOCKERFILE):
        assert "required" not in mount


def test_runtime_reports_to_nobody() -> None:
    assert "ORT_DISABLE_TELEMETRY=1" in stage("runtime")


def test_image_and_make_ask_for_huge_pages_alike() -> None:
    asked = "glibc.malloc.hugetlb=1"
    assert f"GLIBC_TUNABLES={asked}" in stage("runtime")
    assert f"serve bench: export GLIBC_TUNABLES ?= {asked}" in (ROOT / "Makefile").read_text()


def test_build_context_names_what_it_takes() -> None:
    lines = (ROOT / ".dockerignore").read_text().split()
    assert lines[0] == "*"
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert allowed >= {"pyproject.toml", "constraints-cpu.txt", "README.md", "LICENSE", "models", "service"}
    assert all((ROOT / name).exists() for name in allowed)

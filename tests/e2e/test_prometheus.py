"""A real Prometheus scrapes a real server, and what it reads is what was answered."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Process

ROW = [0.0, 4.0] * 32
CHAINS = ["full", "0-2,4", "1,1"]
CONFIG = """\
global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}
scrape_configs:
  - job_name: fathom
    metrics_path: /metrics
    static_configs: [{{targets: ["{address}"]}}]
"""


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus, asked over its HTTP API."""

    url: str

    def ask(self, query: str) -> float | None:
        """The one value of a query, None while there is none."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": query}, timeout=10).raise_for_status()
        found = answer.json()["data"]["result"]
        return float(found[0]["value"][1]) if found else None

    def wait_for(self, query: str, wanted: float) -> None:
        ends, found = time.monotonic() + 30, None
        while time.monotonic() < ends and (found := self._asked(query)) != pytest.approx(wanted, rel=1e-6):
            time.sleep(0.1)
        assert found == pytest.approx(wanted, rel=1e-6), query

    def _asked(self, query: str) -> float | None:
        try:
            return self.ask(query)
        except httpx.HTTPError:  # it is still starting: not there at all, or there and unavailable
            return None


@pytest.fixture(scope="module")
def fresh(start: Any) -> Iterator[Process]:
    """A server nobody else asks."""
    with start("--backend", "onnx", FATHOM_MAX_CHAIN_FACTOR="2") as process:
        yield process


@pytest.fixture(scope="module")
def prometheus(fresh: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "prometheus.yml").write_text(CONFIG.format(address=fresh.url.removeprefix("http://")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    program = shutil.which("prometheus")
    assert program, "install prometheus (Debian has it)"
    places = (f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen((program, *places, f"--web.listen-address={address}"), stderr=log, stdout=log)
    try:
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_what_prometheus_reads_is_what_was_answered(fresh: Process, prometheus: Prometheus) -> None:
    answers = [fresh.post("/predict", model="digits", inputs=[ROW] * 3, chain=CHAINS) for _ in range(7)]
    refused = [fresh.client.post("/predict", json={"model": "digits", "inputs": [[1.0]]}) for _ in range(4)]
    (told,) = fresh.post("/predict", model="arith", inputs=["72915-4821="])["outputs"]
    outputs = [output for answer in answers for output in answer["outputs"]]
    assert {response.status_code for response in refused} == {422}
    executed = sum(output["layers_executed"] for output in outputs)
    assert executed == 7 * sum(len(output["chain"]) for output in answers[0]["outputs"])

    prometheus.wait_for('up{job="fathom"}', 1)
    prometheus.wait_for('sum(fathom_requests_total{route="/predict",outcome="200"})', 8)
    prometheus.wait_for('sum(fathom_requests_total{route="/predict",outcome="422"})', 4)
    prometheus.wait_for('sum(fathom_layers_answered_total{model="digits"})', executed)
    prometheus.wait_for('sum(fathom_layers_full_total{model="digits"})', sum(one["layers_full"] for one in outputs))
    prometheus.wait_for('sum(fathom_generated_tokens_total{model="arith"})', len(told["token_ids"]))
    # Every visit of layer 1: once by the full chain, once and twice by the others, on three rows of seven requests.
    prometheus.wait_for('sum(fathom_layers_executed_total{model="digits",layer="1"})', 7 * 4)


def test_rates_and_quantiles_can_be_asked(fresh: Process, prometheus: Prometheus) -> None:
    prometheus.wait_for('up{job="fathom"}', 1)
    for _ in range(3):  # a rate needs two scrapes with requests between them
        fresh.post("/predict", model="digits", inputs=[ROW] * 3)
        time.sleep(0.4)
    rate = prometheus.ask('sum(rate(fathom_requests_total{route="/predict"}[1m]))')
    assert rate is not None
    assert rate > 0
    slowest = prometheus.ask("histogram_quantile(0.99, sum by (le) (rate(fathom_request_seconds_bucket[1m])))")
    assert slowest is not None
    assert 0 < slowest < 60


def test_metrics_are_as_prometheus_asks(fresh: Process) -> None:
    text = fresh.client.get("/metrics").text
    checked = subprocess.run(("promtool", "check", "metrics"), input=text, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr

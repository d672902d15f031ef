"""Load from wrk, which nobody here wrote: every request of two dialects is answered, and none with an error."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.xdist_group("acceptance")

SCRIPT = Path(__file__).with_name("post.lua")


def test_no_request_under_load_fails(server: Any) -> None:
    before = {
        path: server.metric("fathom_requests_total", route=path, outcome="200")
        for path in ("/predict", "/v2/models/{model}/infer")
    }
    command = ("wrk", "-t", "2", "-c", "16", "-d", "2s", "--timeout", "30s", "-s", str(SCRIPT), server.url)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout.splitlines()[-1])
    requests = counted.pop("requests")
    assert counted == {"status": 0, "connect": 0, "read": 0, "write": 0, "timeout": 0}, done.stdout
    answered = [
        server.metric("fathom_requests_total", route=path, outcome="200") - count for path, count in before.items()
    ]
    assert sum(answered) >= requests >= 100
    assert min(answered) > requests / 4

"""A server whose model is a pipeline of ranks, over HTTP: it answers as one process does, and comes back."""

import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from models.artifact import Manifest
from tests.service.parallel.fakes import ONE_DRIFTS, ONE_STRAYS, led, open_stage
from tests.service.parallel.test_serving import PROMPTS, READY_AGAIN_S, is_ready, predict, ranks_of, wait_for
from tests.service.parallel.test_supervisor import logits

CHAINS = ("full", [0, 2], [2, 1, 0], [0, 1, 2, 0, 1, 2], [1, 1], [2])


def texts(server: Any) -> list[str]:
    """What is said of every prompt along every chain."""
    answers = [server.predict("tinylm", list(PROMPTS), chain=chain)["outputs"] for chain in CHAINS]
    return [output["text"] for outputs in answers for output in outputs]


def test_what_comes_out_is_of_the_rank_with_the_head_and_stages_meet_as_often_as_they_have_to(
    manifest: Manifest, tmp_path: Path
) -> None:
    with led(manifest, tmp_path, opening=open_stage) as ranks:
        plain = logits(ranks.backend, [1, 2])
        logits(ranks.backend, [1, ONE_STRAYS])  # one collective more than the other stage
        logits(ranks.backend, [1, ONE_DRIFTS])
        assert (logits(ranks.backend, [1, 2]) == plain + 100).all()
        assert ranks.supervisor.epoch == 1


def test_stages_answer_as_one_process_and_come_back_when_one_is_lost(
    serve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(backend="eager", pipeline_parallel=1) as server:
        wanted = texts(server)
    with (
        caplog.at_level(logging.INFO, "fathom.ranks"),
        serve(backend="eager", pipeline_parallel=2, rank_silence_s=30.0) as server,
    ):
        assert "rank 0: layer 0 with the embedding, rank 1: layers 1 to 2 with the head" in caplog.text
        assert texts(server) == wanted
        assert server.metric("fathom_rank_wait_seconds_total", rank="0") > 0
        ranks = ranks_of(server)
        os.kill(ranks.processes[1], signal.SIGKILL)
        assert wait_for(lambda: not is_ready(server), 5) < 2.0
        wait_for(lambda: is_ready(server), READY_AGAIN_S)
        assert ranks_of(server).epoch == ranks.epoch + 1
        assert predict(server.client, PROMPTS[0]) == wanted[0]
        body = {"input": PROMPTS[0], "budget": {"simulations": 12}, "seed": 1, "max_new_tokens": 4}
        assert server.post("/cola/search", model="tinylm", **body).status_code == 200
        wait_for(lambda: server.metric("fathom_kv_pages_used") == 0, 10)
        wait_for(lambda: server.metric("fathom_ranks_carries") <= 1, 10)

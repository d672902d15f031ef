"""Which models are shared among ranks, and what is refused before any of them starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from models.artifact import read_manifest
from models.errors import BackendError
from models.parallel.stages import Stages
from service.repository.model_settings import parse_model_settings
from service.repository.sharing import backend_of, is_shared, ranking_of
from service.settings import Settings, read_settings


def settings(**given: Any) -> Settings:
    return Settings.model_validate({"tensor_parallel": 2, **given})


def test_language_models_are_shared_and_all_others_stay(tiny_repository: Path) -> None:
    words, rows = (read_manifest(tiny_repository / name / "1") for name in ("tinylm", "tinymlp"))
    assert is_shared(words, settings())
    assert backend_of(words, settings()) == "eager"
    assert not is_shared(rows, settings())
    assert backend_of(rows, settings(backend="onnx")) == "onnx"
    assert not is_shared(words, settings(tensor_parallel=1))
    assert is_shared(words, settings(tensor_parallel=1, pipeline_parallel=2))


def test_backend_that_runs_in_one_process_is_refused(tiny_repository: Path) -> None:
    with pytest.raises(BackendError, match=r"onnx.*FATHOM_TENSOR_PARALLEL"):
        backend_of(read_manifest(tiny_repository / "tinylm" / "1"), settings(backend="onnx"))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"step_deadline_s": 30.0}, "FATHOM_STEP_DEADLINE_S is 30"),
        ({"group_timeout_s": 20.0}, "FATHOM_GROUP_TIMEOUT_S 20"),
        ({"max_request_s": 30.0}, "FATHOM_MAX_REQUEST_S 30"),
    ],
)
def test_times_that_would_end_in_the_wrong_order_are_refused(
    given: dict[str, float], named: str, tiny_repository: Path
) -> None:
    with pytest.raises(BackendError, match=named):
        ranking_of(read_manifest(tiny_repository / "tinylm" / "1"), settings(**given))


def test_model_says_how_many_ranks_share_it(tiny_repository: Path) -> None:
    said = json.dumps({"limits": {"tensor_parallel": 4, "step_deadline_s": 5.0, "rank_silence_s": 4.0}}).encode()
    own = parse_model_settings(said, "settings.json").over(settings())
    ranking = ranking_of(read_manifest(tiny_repository / "tinylm" / "1"), own)
    assert (ranking.size, ranking.step_deadline_s, ranking.rank_silence_s, ranking.num_threads) == (4, 5.0, 4.0, 1)


def test_model_says_which_stages_share_it(tiny_repository: Path) -> None:
    said = json.dumps({"limits": {"pipeline_parallel": 2, "pipeline_layers": [1, 2]}}).encode()
    own = parse_model_settings(said, "settings.json").over(settings())
    ranking = ranking_of(read_manifest(tiny_repository / "tinylm" / "1"), own)
    assert (ranking.size, ranking.stages) == (4, Stages((0, 1, 3)))
    assert read_settings({"FATHOM_PIPELINE_PARALLEL": "2", "FATHOM_PIPELINE_LAYERS": "1, 2"}).pipeline_layers == (1, 2)


def test_more_stages_than_layers_are_refused(tiny_repository: Path) -> None:
    with pytest.raises(BackendError, match="4 stages of a pipeline and the model has 3 layers; use at most 3"):
        ranking_of(read_manifest(tiny_repository / "tinylm" / "1"), settings(pipeline_parallel=4))


def test_server_that_ranks_never_come_to_can_be_stopped(serve: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("sixteen bytes or more")
    external = {"ranks_address": "tcp://127.0.0.1:0", "ranks_secret": tmp_path / "secret", "backend": "eager"}
    with serve(wait=False, tensor_parallel=2, **external) as server:
        while server.client.get("/health/ready").status_code != 503:
            pass
        assert server.client.get("/health/live").status_code == 200


def test_ranks_of_other_nodes_need_a_secret(serve: Any) -> None:
    with serve(wait=False, tensor_parallel=2, ranks_address="tcp://127.0.0.1:0", backend="eager") as server:
        states: dict[str, Any] = {}
        while states.get("tinylm", {}).get("state") != "failed":
            states = {one["name"]: one for one in server.client.get("/models").json()}
        assert "FATHOM_RANKS_SECRET" in states["tinylm"]["reason"]

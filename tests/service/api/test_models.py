"""GET /models, loading and unloading while others serve, and artifacts that are not what they say."""

import json
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROW = [1.0, 0.0, 2.0, 0.5, 1.5, 3.0]


@pytest.fixture
def repository(tiny_repository: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny_repository, tmp_path / "repository"))


def _edit(directory: Path, **members: Any) -> None:
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **members}))


def test_models_are_listed_with_what_they_take(server: Any) -> None:
    found = {one["name"]: one for one in server.client.get("/models").json()}
    assert found.keys() == {"tinylm", "tinymlp"}
    assert {one["state"] for one in found.values()} == {"ready"}
    assert [one["num_layers"] for one in found.values()] == [3, 3]
    assert [one["max_chain_length"] for one in found.values()] == [12, 12]
    assert found["tinymlp"]["inputs"][0]["shape"] == [-1, 6]
    assert found["tinylm"]["residual_form"] == "standard"
    assert server.client.get("/models/tinylm").json() == [found["tinylm"]]


def test_unknown_models_are_named_with_those_there_are(server: Any, problem: Any) -> None:
    problem(server.client.get("/models/absent"), 404, "absent", "tinylm/1")
    problem(server.client.post("/models/absent/load"), 404, "absent", "tinylm")
    problem(server.client.post("/models/absent/unload"), 404, "absent", "tinylm/1")
    problem(server.client.post("/models/tinylm/load", params={"version": "7"}), 404, "'7'", "tinylm/1")
    problem(server.client.post("/models/tinylm/unload", params={"version": "7"}), 404, "'7'", "tinylm/1")
    problem(server.client.post("/models/..%2Ftinylm/load"), 404)


def test_model_can_be_unloaded_and_loaded_again(serve: Any, problem: Any) -> None:
    with serve() as server:
        before = server.predict("tinymlp", [ROW])["outputs"]
        (left,) = server.client.post("/models/tinymlp/unload").json()
        assert left["state"] == "available"
        response = server.post("/predict", model="tinymlp", inputs=[ROW])
        problem(response, 503, "tinymlp", "/models/tinymlp/load")
        assert "retry-after" in response.headers
        assert server.client.get("/health/ready").status_code == 200
        server.predict("tinylm", ["1+1="])
        assert server.metric("fathom_model_ready", model="tinymlp") == 0
        assert server.client.post("/models/tinymlp/load").json()["state"] == "ready"
        assert server.predict("tinymlp", [ROW])["outputs"] == before
        assert server.client.post("/models/tinymlp/load").json()["state"] == "ready"
        assert server.metric("fathom_model_ready", model="tinymlp") == 1


def test_others_serve_on_while_a_model_comes_and_goes(serve: Any) -> None:
    with serve(backend="onnx") as server:
        expected = server.predict("tinylm", ["12+7="], chain="0,0,2")["outputs"]
        wrong: list[Any] = []
        statuses: set[int] = set()
        is_over = threading.Event()

        def ask_neighbour() -> None:
            while not is_over.is_set():
                if server.predict("tinylm", ["12+7="], chain="0,0,2")["outputs"] != expected:
                    wrong.append("neighbour")

        def ask_itself() -> None:
            while not is_over.is_set():
                statuses.add(server.post("/predict", model="tinymlp", inputs=[ROW] * 100).status_code)

        threads = [threading.Thread(target=target) for target in (ask_neighbour, ask_neighbour, ask_itself)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            assert server.client.post("/models/tinymlp/unload").status_code == 200
            assert server.client.post("/models/tinymlp/load").status_code == 200
        is_over.set()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert statuses <= {200, 503}
        assert server.metric("fathom_kv_pages_used") == server.metric("fathom_queue_requests") == 0


def test_loads_and_unloads_at_once_leave_one_engine_or_none(serve: Any) -> None:
    with serve(backend="onnx") as server:

        def ask(action: str) -> None:
            assert server.client.post(f"/models/tinymlp/{action}").status_code == 200

        actions = ["unload", "load", "load", "unload", "load", "unload"] * 3
        threads = [threading.Thread(target=ask, args=(action,)) for action in actions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ask("unload")
        devices = [thread for thread in threading.enumerate() if thread.name == "fathom-device"]
        assert server.client.get("/models/tinymlp").json()[0]["state"] == "available"
        ask("load")
        assert len([thread for thread in threading.enumerate() if thread.name == "fathom-device"]) == len(devices) + 1
        server.predict("tinymlp", [ROW])


def test_latest_ready_version_answers_by_default(repository: Path, serve: Any) -> None:
    for version in ("2", "10"):
        shutil.copytree(repository / "tinymlp" / "1", repository / "tinymlp" / version)
        _edit(repository / "tinymlp" / version, version=version)
    with serve(repository=repository) as server:

        def answering(**fields: str) -> str:
            return str(server.predict("tinymlp", [ROW], **fields)["version"])

        assert answering() == "10"
        for version in ("1", "2"):
            server.client.post("/models/tinymlp/load", params={"version": version})
        assert answering() == "10"
        assert answering(version="1") == "1"
        server.client.post("/models/tinymlp/unload", params={"version": "10"})
        assert answering() == "2"
        states = {one["version"]: one["state"] for one in server.client.get("/models/tinymlp").json()}
        assert states == {"1": "ready", "2": "ready", "10": "available"}


def _flip(directory: Path) -> None:
    path = directory / "onnx" / "head.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def _cut(directory: Path) -> None:
    path = directory / "onnx" / "head.onnx"
    path.write_bytes(path.read_bytes()[:100])


def _garble(directory: Path) -> None:
    from models.artifact import file_record

    path = directory / "onnx" / "head.onnx"
    path.write_bytes(b"no graph at all")
    files = json.loads((directory / "manifest.json").read_text())["files"]
    _edit(directory, files={**files, "onnx/head.onnx": file_record(path).model_dump()})


def _escape(directory: Path) -> None:
    files = json.loads((directory / "manifest.json").read_text())["files"]
    _edit(directory, files={**files, "../../../secret": {"sha256": "0" * 64, "size_bytes": 0}})


def _halve(directory: Path) -> None:
    path = directory / "manifest.json"
    path.write_text(path.read_text()[:200])


# What is done to the files, the status of loading them, and what the reason says.
DAMAGES: list[tuple[Callable[[Path], object], int, tuple[str, ...]]] = [
    (_flip, 409, ("head.onnx", "sha256", "export")),
    (_cut, 409, ("head.onnx", "100 bytes", "export")),
    (lambda directory: (directory / "onnx" / "head.onnx").unlink(), 409, ("head.onnx", "missing", "export")),
    (_halve, 409, ("manifest.json", "not a valid manifest", "export")),
    (lambda directory: (directory / "manifest.json").write_bytes(b"\xff\xfe"), 409, ("manifest.json", "export")),
    (lambda directory: _edit(directory, files={}), 409, ("without listing its hash", "export")),
    (lambda directory: _edit(directory, schema_version=2), 409, ("schema_version", "export")),
    (lambda directory: _edit(directory, surprise=1), 409, ("surprise", "export")),
    (lambda directory: _edit(directory, name="other"), 409, ("other", "export")),
    (_escape, 409, ("secret", "outside")),
    (_garble, 500, ("head.onnx",)),
]


@pytest.mark.parametrize(("damage", "status", "words"), DAMAGES, ids=[words[0] for *_, words in DAMAGES])
def test_damaged_artifact_is_refused_and_the_others_serve(
    repository: Path, serve: Any, problem: Any, damage: Any, status: int, words: tuple[str, ...]
) -> None:
    damage(repository / "tinymlp" / "1")
    with serve(repository=repository, backend="onnx") as server:
        assert server.client.get("/health/ready").status_code == 200
        (info,) = server.client.get("/models/tinymlp").json()
        assert info["state"] == "failed"
        for word in words:
            assert word in info["reason"]
        problem(server.client.post("/models/tinymlp/load"), status, *(words if status == 409 else ()))
        problem(server.post("/predict", model="tinymlp", inputs=[ROW]), 503, "failed", words[0])
        server.predict("tinylm", ["1+1="])


def test_damaged_artifact_serves_once_it_is_whole(tiny_repository: Path, repository: Path, serve: Any) -> None:
    directory = repository / "tinymlp" / "1"
    _cut(directory)
    with serve(repository=repository, backend="onnx") as server:
        assert server.client.post("/models/tinymlp/load").status_code == 409
        shutil.copytree(tiny_repository / "tinymlp" / "1", directory, dirs_exist_ok=True)
        assert server.client.post("/models/tinymlp/load").json()["state"] == "ready"
        server.predict("tinymlp", [ROW])


def test_version_without_manifest_is_not_there(repository: Path, serve: Any, problem: Any) -> None:
    (repository / "tinymlp" / "1" / "manifest.json").unlink()
    (repository / ".half-written" / "1").mkdir(parents=True)
    (repository / ".half-written" / "1" / "manifest.json").write_text("{}")
    with serve(repository=repository) as server:
        assert [one["name"] for one in server.client.get("/models").json()] == ["tinylm"]
        problem(server.client.post("/models/tinymlp/load"), 404, "tinymlp", "tinylm")


def test_missing_form_names_those_there_are(repository: Path, serve: Any) -> None:
    directory = repository / "tinymlp" / "1"
    forms = json.loads((directory / "manifest.json").read_text())["forms"]
    _edit(directory, forms={"safetensors": forms["safetensors"]})
    with serve(repository=repository, backend="onnx") as server:
        (info,) = server.client.get("/models/tinymlp").json()
        assert "safetensors" in info["reason"]
        assert "'onnx'" in info["reason"]


def test_empty_repository_is_not_ready(tmp_path: Path, serve: Any, problem: Any) -> None:
    with serve(wait=False, repository=tmp_path) as server:
        assert server.client.get("/models").json() == []
        problem(server.client.get("/health/ready"), 503)
        assert server.client.get("/health/live").status_code == 200
        problem(server.post("/predict", model="tinylm", inputs=["1"]), 404, "tinylm")


def test_sequence_too_large_for_the_memory_is_refused_and_names_the_setting(
    serve: Any, problem: Callable[..., dict[str, Any]]
) -> None:
    with serve(kv_bytes=1 << 20, max_chain_factor=64) as server:
        large = {"inputs": ["1+1="], "chain": [0, 1, 2] * 60, "parameters": {"max_new_tokens": 60}}
        problem(server.post("/predict", model="tinylm", **large), 413, "720 pages", "512", "FATHOM_KV_BYTES")
        server.predict("tinylm", ["1+1="], chain=[0, 1, 2] * 60, parameters={"max_new_tokens": 4})


def test_model_that_fails_its_first_run_does_not_load(serve: Any, pace: Any, problem: Any) -> None:
    pace.fault = "the device is on fire"
    with serve(wait=False) as server:
        while server.client.get("/models/tinymlp").json()[0]["state"] != "failed":
            threading.Event().wait(0.01)
        problem(server.post("/predict", model="tinymlp", inputs=[ROW]), 503, "the device is on fire", "FATHOM_WARM_UP")
    pace.num_passes = 0
    with serve(warm_up=False) as server:
        pace.fault = ""
        server.predict("tinymlp", [ROW])
        assert pace.num_passes == 1


def _publish(repository: Path, version: str, **members: Any) -> Path:
    hidden = Path(shutil.copytree(repository / "tinymlp" / "1", repository / f".tinymlp-{version}"))
    _edit(hidden, version=version, **members)
    return hidden.rename(repository / "tinymlp" / version)


def test_versions_are_followed_and_named_by_labels_in_every_dialect(repository: Path, serve: Any, problem: Any) -> None:
    with serve(repository=repository, reload_s=0.05) as server:
        _publish(repository, "2")
        labels = {"labels": {"stable": "1", "canary": "2"}, "split": {"stable": 3, "canary": 1}}
        (repository / "tinymlp" / "settings.json").write_text(json.dumps(labels))
        while server.client.get("/models/tinymlp").json()[-1]["labels"] != ["canary"]:
            threading.Event().wait(0.01)
        found = {one["version"]: one for one in server.client.get("/models/tinymlp").json()}
        assert {version: (one["state"], one["labels"], one["split"]) for version, one in found.items()} == {
            "1": ("ready", ["stable"], 3),
            "2": ("ready", ["canary"], 1),
        }
        answered = [server.predict("tinymlp", [ROW])["version"] for _ in range(8)]
        assert sorted(answered) == ["1"] * 6 + ["2"] * 2
        assert server.predict("tinymlp", [ROW], version="canary")["version"] == "2"
        assert server.predict("tinymlp@canary", [ROW])["version"] == "2"
        assert server.client.get("/v2/models/tinymlp/versions/canary/ready").status_code == 200
        told = server.post("/v1/models/tinymlp@canary:predict", instances=[ROW]).json()
        assert (told["model_name"], told["model_version"]) == ("tinymlp", "2")
        inputs = [{"name": "inputs", "shape": [1, 6], "datatype": "FP32", "data": [ROW]}]
        inputs[0]["name"] = found["1"]["inputs"][0]["name"]
        told = server.post("/v2/models/tinymlp/versions/canary/infer", inputs=inputs).json()
        assert told["model_version"] == "2"
        problem(server.post("/predict", model="tinymlp", version="beta", inputs=[ROW]), 404, "'beta'", "canary")
        problem(server.post("/predict", model="tinymlp@beta", inputs=[ROW]), 404, "'beta'", "canary")
        assert server.metric("fathom_repository_reloads_total", outcome="done") >= 1


def test_language_models_take_labels_after_an_at_sign(repository: Path, serve: Any) -> None:
    (repository / "tinylm" / "settings.json").write_text(json.dumps({"labels": {"stable": "1"}}))
    with serve(repository=repository) as server:
        for body in ({"model": "tinylm@stable"}, {"model": "tinylm", "version": "stable"}):
            told = server.post("/v1/completions", prompt="1+1=", max_tokens=2, **body).json()
            assert (told["model"], told["choices"][0]["fathom"]["version"]) == ("tinylm", "1")
        assert server.client.get("/v1/models/tinylm@stable").json()["id"] == "tinylm"


def test_repository_is_looked_at_again_on_demand(repository: Path, serve: Any, problem: Any) -> None:
    with serve(repository=repository, backend="onnx") as server:
        _cut(_publish(repository, "2"))
        found = {(one["name"], one["version"]): one for one in server.client.post("/repository/reload").json()}
        assert found["tinymlp", "1"]["state"] == "ready"
        assert found["tinymlp", "2"]["state"] == "failed"
        assert "head.onnx" in found["tinymlp", "2"]["reason"]
        assert server.metric("fathom_model_load_failures_total", model="tinymlp", version="2") == 1
        assert server.metric("fathom_repository_reloads_total", outcome="failed") == 1
        (repository / "tinymlp" / "settings.json").write_text('{"lables": {}}')
        (one, _) = [one for one in server.client.post("/repository/reload").json() if one["name"] == "tinymlp"]
        assert "tinymlp/settings.json: lables: there is no such field" in one["reason"]
        assert server.predict("tinymlp", [ROW])["version"] == "1"
        shutil.rmtree(repository)
        problem(server.client.post("/repository/reload"), 409, "cannot be read")
        assert server.predict("tinymlp", [ROW])["version"] == "1"


def test_only_signed_versions_serve_where_there_is_a_key(repository: Path, serve: Any, tmp_path: Path) -> None:
    from models.signature import sign

    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    sign(repository / "tinymlp" / "1", private)
    with serve(repository=repository, repository_key=public) as server:
        found = {one["name"]: one for one in server.client.get("/models").json()}
        assert found["tinymlp"]["state"] == "ready"
        assert found["tinylm"]["state"] == "failed"
        assert "tinylm/1 has no signature" in found["tinylm"]["reason"]


def _edit_whole(directory: Path, **members: Any) -> None:
    """What an export with --overwrite does, as far as a server can tell."""
    hidden = Path(shutil.copytree(directory, directory.parent.parent / ".again"))
    _edit(hidden, **members)
    shutil.rmtree(directory)
    hidden.rename(directory)


def _num_devices() -> int:
    return len([thread for thread in threading.enumerate() if thread.name == "fathom-device"])


def test_streams_and_searches_end_on_the_version_they_began_on(repository: Path, serve: Any, pace: Any) -> None:
    with serve(repository=repository) as server:
        pace.seconds, devices = 0.02, _num_devices()
        text = {"model": "tinylm", "inputs": ["1+1="], "stream": True, "parameters": {"max_new_tokens": 20}}
        wanted = {"model": "tinylm", "input": "1+1=", "target": "99", "budget": {"simulations": 40}}
        job = server.post("/cola/jobs", **wanted).json()["id"]
        with server.client.stream("POST", "/predict", json=text) as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: token"
            _edit_whole(repository / "tinylm" / "1", provenance={"note": "again"})
            (info, _) = server.client.post("/repository/reload").json()
            assert info["provenance"] == {"note": "again"}
            assert [line for line in lines if line.startswith("event:")][-1] == "event: done"
        found = server.client.get(f"/cola/jobs/{job}").json()
        assert found["state"] in ("queued", "running"), found["reason"]
        pace.seconds = 0.0
        while (found := server.client.get(f"/cola/jobs/{job}").json())["state"] in ("queued", "running"):
            threading.Event().wait(0.02)
        assert found["state"] == "done", found["reason"]
        while _num_devices() > devices:
            threading.Event().wait(0.01)

"""/cola/chains and chain "memory": what a search remembers is what /predict then runs, and nothing else is."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service import cli
from service.cola.database import FILE

FULL = [0, 1, 2]
ROW = [1.0, 0.0, 2.0, 0.5, 1.5, 3.0]
LONG = {"max_length": 6}


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "chains.db")


@pytest.fixture
def remembering(serve: Any, place: str) -> Iterator[Any]:
    """A server of the tiny models with a memory of its own."""
    with serve(memory=place) as served:
        yield served


def search(served: Any, model: str = "tinylm", sample: Any = "12+7=", **fields: Any) -> Any:
    """The result of a search that remembers."""
    budget = {"simulations": 60}
    response = served.post(
        "/cola/search", **{"model": model, "input": sample, "remember": True, "budget": budget, **fields}
    )
    assert response.status_code == 200, response.text
    return response.json()


def chains_run(served: Any, model: str, inputs: Any, chain: Any = "memory") -> list[list[int]]:
    return [output["chain"] for output in served.predict(model, inputs, chain=chain)["outputs"]]


def another_chain(served: Any, model: str = "tinylm", sample: Any = "12+7=") -> list[int]:
    """A certified chain that is not the full one: the answer of some other chain is made the target."""
    chain = [0, 0, 2, 1]
    output = served.predict(model, [sample], chain=chain)["outputs"][0]
    target = output["token_ids"][:-1] if model == "tinylm" else _favourite(output)
    found = search(served, model, sample, target=target, space={"name": "menu", "chains": [chain]})
    assert found["best"]["certified"]
    assert found["best"]["chain"] == chain
    assert found["remembered"]
    return chain


def _favourite(output: Any) -> int:
    (scores,) = output["outputs"].values()
    return scores.index(max(scores))


@pytest.mark.parametrize(("model", "samples"), [("tinylm", ["12+7=", "3-1="]), ("tinymlp", [ROW, [0.0] * 6])])
def test_the_remembered_chain_runs_for_its_very_input_and_the_full_one_for_others(
    remembering: Any, model: str, samples: list[Any]
) -> None:
    chain = another_chain(remembering, model, samples[0])
    assert chains_run(remembering, model, samples) == [chain, FULL]
    assert chains_run(remembering, model, samples[:1], "full") == [FULL]
    assert chains_run(remembering, model, [*samples, samples[0]], ["memory", "1", FULL]) == [chain, [1], FULL]
    labels = {"model": model, "version": "1"}
    assert remembering.metric("fathom_memory_hits_total", **labels) == 2
    assert remembering.metric("fathom_memory_misses_total", **labels) == 1


def test_a_text_and_its_tokens_are_one_input(remembering: Any) -> None:
    chain = another_chain(remembering)
    engine = remembering.app.state.registry.states()["tinylm", "1"].engine
    assert chains_run(remembering, "tinylm", [list(engine.encode("12+7="))]) == [chain]


def test_a_stream_runs_the_remembered_chain(remembering: Any) -> None:
    chain = another_chain(remembering)
    response = remembering.post("/predict", model="tinylm", inputs=["12+7="], chain="memory", stream=True)
    done = json.loads(response.text.partition("event: done\ndata: ")[2])
    assert done["outputs"][0]["chain"] == chain


@pytest.mark.parametrize("how", ["alone", "several", "streamed"])
def test_every_way_to_search_remembers(remembering: Any, how: str) -> None:
    if how == "several":
        found = search(remembering, input=None, inputs=["1+1=", "2+2="])["results"]
    elif how == "streamed":
        body = {"model": "tinylm", "input": "1+1=", "remember": True, "stream": True, "budget": {"simulations": 20}}
        text = remembering.post("/cola/search", **body).text
        found = [json.loads(text.partition("event: result\ndata: ")[2])]
    else:
        found = [search(remembering, sample="1+1=")]
    kept = remembering.client.get("/cola/chains").json()["chains"]
    assert {one["id"] for one in kept} == {one["remembered"] for one in found}
    assert all(one["reward"] == "agreement" and one["certificate"]["oracle"] is False for one in kept)


def test_only_what_was_asked_for_and_certified_is_remembered(remembering: Any) -> None:
    assert search(remembering, remember=False)["remembered"] is None
    impossible = search(remembering, target="9" * 20, budget={"simulations": 5})
    assert impossible["best"]["certified"] is False
    assert impossible["remembered"] is None
    assert remembering.client.get("/cola/chains").json() == {"chains": [], "next": None}


def test_the_same_search_is_remembered_once_and_another_one_beside_it(remembering: Any) -> None:
    first = search(remembering)["remembered"]
    assert search(remembering, mcts={"exploration": 0.4}, top_k=1)["remembered"] == first
    others = {search(remembering, **other)["remembered"] for other in ({"seed": 1}, {"mcts": {"widening": 1.0}})}
    assert len({first, *others}) == 3


def test_a_control_is_never_remembered(remembering: Any, problem: Callable[..., Any]) -> None:
    body = {"model": "tinylm", "input": "12+7=", "target": "1", "truth": "19", "reward": "wrong_target"}
    problem(remembering.post("/cola/search", **body, remember=True), 422, "wrong_target", "control")
    problem(remembering.post("/cola/jobs", **body, remember=True), 422, "wrong_target", "control")


def test_chains_are_listed_newest_first_by_page_and_filter(remembering: Any, problem: Callable[..., Any]) -> None:
    made = [search(remembering, sample=f"{number}+1=", budget={"simulations": 5})["remembered"] for number in range(5)]
    made.append(search(remembering, "tinymlp", ROW)["remembered"])
    get = remembering.client.get
    seen, cursor = [], None
    while cursor or not seen:
        page = get("/cola/chains", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen += page["chains"]
        cursor = page["next"]
    assert [one["id"] for one in seen] == made[::-1]
    narrowed = get("/cola/chains", params={"model": "tinymlp", "version": "1", "reward": "agreement"}).json()
    assert [one["id"] for one in narrowed["chains"]] == made[-1:]
    assert get("/cola/chains", params={"reward": "target"}).json()["chains"] == []
    assert get(f"/cola/chains/{made[0]}").json() == seen[-1]
    for cursor in ("x", "nan_1", "1_", "1_;drop"):
        problem(get("/cola/chains", params={"cursor": cursor}), 422, "cursor")
    for limit in (0, 1001):
        problem(get("/cola/chains", params={"limit": limit}), 422, "limit")


def test_a_forgotten_chain_runs_no_more(remembering: Any, problem: Callable[..., Any]) -> None:
    another_chain(remembering)
    (kept,) = remembering.client.get("/cola/chains").json()["chains"]
    path = f"/cola/chains/{kept['id']}"
    response = remembering.client.delete(path)
    assert (response.status_code, response.content) == (204, b"")
    assert chains_run(remembering, "tinylm", ["12+7="]) == [FULL]
    problem(remembering.client.delete(path), 404, kept["id"])
    problem(remembering.client.get(path), 404, kept["id"])


@pytest.mark.parametrize("change", ["file", "form"])
def test_other_weights_or_another_residual_form_are_answered_in_full(
    serve: Any, tiny_repository: Path, tmp_path: Path, place: str, change: str
) -> None:
    with serve(memory=place) as served:
        chain = another_chain(served)
    changed = tmp_path / "changed"
    shutil.copytree(tiny_repository / "tinylm", changed / "tinylm")
    manifest = changed / "tinylm" / "1" / "manifest.json"
    said = json.loads(manifest.read_text())
    if change == "form":
        said["layers"]["residual_form"] = "ladder"
    else:
        said["files"]["extra"] = {"sha256": "2" * 64, "size_bytes": 0}
        (manifest.parent / "extra").touch()
        said["files"]["extra"]["sha256"] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    manifest.write_text(json.dumps(said))
    with serve(memory=place, repository=changed) as served:
        assert chains_run(served, "tinylm", ["12+7="]) == [FULL]
    with serve(memory=place) as served:
        assert chains_run(served, "tinylm", ["12+7="]) == [chain]


def test_a_chain_that_became_too_long_is_answered_in_full(serve: Any, place: str) -> None:
    with serve(memory=place) as served:
        another_chain(served)
    with serve(memory=place, max_chain_factor=1.0) as served:
        assert chains_run(served, "tinylm", ["12+7="]) == [FULL]
        assert served.metric("fathom_memory_misses_total") == 1


def test_a_damaged_memory_says_so_and_everything_else_is_served(
    serve: Any, place: str, problem: Callable[..., Any]
) -> None:
    Path(place).write_bytes(b"no database" * 1000)
    with serve(memory=place) as served:
        assert chains_run(served, "tinylm", ["12+7="], "full") == [FULL]
        body = {"model": "tinylm", "input": "12+7=", "budget": {"simulations": 5}}
        assert served.post("/cola/search", **body).status_code == 200
        words = (place, "file is not a database", "FATHOM_MEMORY")
        problem(served.post("/predict", model="tinylm", inputs=["12+7="], chain="memory"), 503, *words)
        problem(served.post("/cola/search", **body, remember=True), 503, *words)
        problem(served.post("/cola/jobs", **body), 503, *words)
        problem(served.client.get("/cola/chains"), 503, *words)
        problem(served.client.get("/cola/jobs"), 503, *words)
        assert served.client.get("/health/ready").status_code == 200


def test_a_repository_that_cannot_be_written_serves_and_remembers_for_a_while(
    serve: Any, tiny_repository: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(tiny_repository / "tinylm", repository / "tinylm")
    (repository / FILE).mkdir()
    with serve(repository=repository) as served:
        assert chains_run(served, "tinylm", ["12+7="]) == [FULL]
        chain = another_chain(served)
        assert chains_run(served, "tinylm", ["12+7="]) == [chain]
    assert list((repository / FILE).iterdir()) == []


def test_by_default_chains_stay_in_the_repository_and_are_no_model(
    serve: Any, tiny_repository: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(tiny_repository / "tinylm", repository / "tinylm")
    with serve(repository=repository) as served:
        assert not (repository / FILE).exists()
        chain = another_chain(served)
    with serve(repository=repository) as served:
        assert chains_run(served, "tinylm", ["12+7="]) == [chain]
        assert [one["name"] for one in served.client.get("/models").json()] == ["tinylm"]


def test_an_export_imported_elsewhere_answers_alike(serve: Any, tmp_path: Path, place: str) -> None:
    with serve(memory=place) as served:
        chain = another_chain(served)
        search(served, sample="3-1=")
        listed = served.client.get("/cola/chains").json()["chains"]
    exported = _fathom("chains", "export", "--memory", place)
    assert [json.loads(line) for line in exported.stdout.splitlines()] == listed
    lines = tmp_path / "chains.jsonl"
    lines.write_text(exported.stdout + "\n")
    elsewhere = str(tmp_path / "elsewhere.db")
    for _ in range(2):
        assert "2 chains imported" in _fathom("chains", "import", str(lines), "--memory", elsewhere).stderr
    with serve(memory=elsewhere) as served:
        assert chains_run(served, "tinylm", ["12+7="]) == [chain]
        assert served.client.get("/cola/chains").json()["chains"] == listed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda line: line[:-2], "line 2: the line: Invalid JSON"),
        (lambda line: line.replace('"chain":[', '"chain":[-1,'), "line 2: chain.0: Input should be greater"),
        (lambda line: line.replace('"version":"1"', '"version":"2"'), "line 2: the id does not fit"),
        (lambda line: line.replace('"reward":', '"price":1,"reward":'), "line 2: price: Extra inputs"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_imported(
    serve: Any, tmp_path: Path, place: str, change: Callable[[str], str], words: str
) -> None:
    with serve(memory=place) as served:
        search(served, budget={"simulations": 5})
    line = _fathom("chains", "export", "--memory", place).stdout.strip()
    lines = tmp_path / "chains.jsonl"
    lines.write_text(f"{line}\n{change(line)}\n")
    elsewhere = str(tmp_path / "elsewhere.db")
    failed = _fathom("chains", "import", str(lines), "--memory", elsewhere)
    assert failed.exit_code == 1
    assert words in str(failed.exception)
    assert _fathom("chains", "export", "--memory", elsewhere).stdout == ""


def _fathom(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, arguments)

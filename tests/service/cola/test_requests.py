"""What a search request may say: presets, spaces, rewards, the tree, and garbage that hurts nobody."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from service.cola.presets import PRESETS
from service.cola.verifier import VERIFIERS

PROMPT, ROW = "12+7=", [1.0, 0.0, 2.0, 0.5, 1.5, 3.0]
SHORT = {"max_new_tokens": 4}


@pytest.fixture(scope="module")
def fake(serve: Any) -> Any:
    with serve() as server:
        yield server


def search(server: Any, status: int = 200, **body: Any) -> Any:
    response = server.post("/cola/search", **{"model": "tinylm", "input": PROMPT, **SHORT, **body})
    assert response.status_code == status, response.text
    return response.json()


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_response_tells_the_constants_of_the_preset(fake: Any, preset: str) -> None:
    result, constants = search(fake, preset=preset), PRESETS[preset]
    assert (result["preset"], result["seed"], result["kv"]) == (preset, constants.seed, "exact")
    assert result["mcts"]["walk"] == constants.mcts.walk
    assert result["mcts"]["leaf_batch"] == constants.leaf_batch
    assert result["mcts"]["widening"] == constants.mcts.widening
    assert result["budget"]["simulations"] == constants.budget.simulations
    assert result["budget"]["stop"] == constants.budget.stop
    assert result["space"]["name"] == constants.space


def test_polar_code_by_its_numbers(fake: Any) -> None:
    result = search(fake, preset="polar-code")
    assert (result["space"]["max_repeats"], result["space"]["deep_block"], result["space"]["max_visits"]) == (1, 1, 2)
    assert (result["space"]["min_length"], result["space"]["max_length"]) == (2, 4)
    assert (result["mcts"]["length_penalty"], result["mcts"]["random_child"]) == (5.0, 0.1)


def test_what_the_request_says_goes_before_the_preset(fake: Any) -> None:
    result = search(
        fake,
        preset="cola-paper",
        seed=9,
        budget={"simulations": 20},
        space={"max_block": 2, "max_length": 5},
        mcts={"random_child": 0.0, "leaf_batch": 4},
    )
    assert (result["seed"], result["budget"]["simulations"], result["stats"]["simulations"]) == (9, 20, 20)
    assert (result["space"]["max_block"], result["space"]["max_length"], result["space"]["max_repeats"]) == (2, 5, 4)
    assert (result["mcts"]["random_child"], result["mcts"]["leaf_batch"]) == (0.0, 4)
    assert (result["mcts"]["widening"], result["mcts"]["length_penalty"]) == (None, 5.0)


def test_a_space_can_be_named(fake: Any) -> None:
    result = search(fake, space={"name": "polar", "max_block": 2}, budget={"simulations": 1000})
    assert (result["space"]["name"], result["space"]["max_repeats"], result["stopped_by"]) == (
        "polar",
        None,
        "exhausted",
    )
    # Three layers, segments of up to two: s, k and r of 1, and repeats of 2: 27 + 2 * 3 programs, one of them empty.
    assert result["stats"]["simulations"] == 32


def test_a_menu_tries_its_chains_and_no_other(fake: Any) -> None:
    result = search(fake, space={"name": "menu", "chains": ["0,2", [1, 1, 2], "full"]})
    assert result["space"]["chains"] == [[0, 2], [1, 1, 2], [0, 1, 2]]
    assert (result["stopped_by"], result["stats"]["simulations"]) == ("exhausted", 3)
    assert len(result["top"]) <= 3


def test_the_tree_is_told_when_asked_for(fake: Any) -> None:
    assert search(fake)["tree"] is None
    tree = search(fake, include_tree=True, budget={"simulations": 1000}, space={"max_length": 12})["tree"]
    assert len(tree) == 512
    assert tree[0]["chain"] == [0, 1, 2]
    assert {child for node in tree for child in node["children"]} == set(range(1, 512))


@pytest.mark.parametrize("reward", ["confidence", "margin", "consistency"])
@pytest.mark.parametrize(("model", "sample"), [("tinylm", PROMPT), ("tinymlp", ROW)])
def test_rewards_without_a_label_certify_what_serving_says(fake: Any, reward: str, model: str, sample: Any) -> None:
    result = search(fake, model=model, input=sample, reward=reward, budget={"simulations": 30})
    assert (result["reward"], result["oracle"], result["best"]["certified"]) == (reward, False, True)
    assert 0 < result["best"]["reward"] <= 1


def test_a_question_with_choices_is_a_classifier(fake: Any) -> None:
    result = search(fake, choices=["1", "2", "3", "4"], target="3", reward="choice", budget={"simulations": 60})
    assert (result["oracle"], result["best"]["text"] in "1234") == (True, True)
    assert result["best"]["certified"] == (result["best"]["text"] == "3")
    ranked = [one["reward"] for one in result["top"]]
    assert ranked == sorted(ranked, reverse=True)


def test_a_search_can_stop_at_the_first_hit(fake: Any) -> None:
    result = search(fake, model="tinymlp", input=ROW, target=2, budget={"simulations": 200, "stop": "first"})
    assert result["stopped_by"] == "first" or not result["best"]["certified"]


def test_a_wrong_target_is_hit_as_a_control(fake: Any) -> None:
    full = search(fake, model="tinymlp", input=ROW)["full"]["text"]
    wrong = (int(full) + 1) % 4
    result = search(fake, model="tinymlp", input=ROW, reward="wrong_target", target=wrong, truth=int(full))
    assert (result["reward"], result["oracle"]) == ("wrong_target", True)
    assert not result["best"]["certified"] or result["best"]["text"] == str(wrong)


def test_a_registered_verifier_judges_answers(fake: Any) -> None:
    VERIFIERS.register("even", lambda sample, answer: float(answer in ("0", "2")))
    result = search(fake, model="tinymlp", input=ROW, reward="verifier", verifier="even")
    assert not result["deterministic"]
    assert not result["best"]["certified"] or result["best"]["text"] in ("0", "2")


def test_an_endpoint_of_the_settings_judges_answers(serve: Any) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"reward": 1}')

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as endpoint:
        thread = threading.Thread(target=endpoint.serve_forever)
        thread.start()
        try:
            with serve(verifier_url=f"http://127.0.0.1:{endpoint.server_port}/") as server:
                result = search(server, model="tinymlp", input=ROW, reward="verifier", budget={"simulations": 20})
        finally:
            endpoint.shutdown()
            thread.join()
    assert (result["best"]["reward"], result["best"]["length"], result["best"]["certified"]) == (1.0, 1, True)


def test_a_verifier_that_fails_says_so_and_hurts_nobody(fake: Any) -> None:
    def broken(sample: str, answer: str) -> float:
        raise RuntimeError("out of cheese")

    VERIFIERS.register("broken", broken)
    problem = search(fake, 502, model="tinymlp", input=ROW, reward="verifier", verifier="broken")
    assert "'broken' raised RuntimeError: out of cheese" in problem["detail"]
    assert search(fake, model="tinymlp", input=ROW)["best"]["certified"]


def test_the_reference_cache_is_marked_and_never_certified(fake: Any) -> None:
    result = search(fake, preset="polar-code", kv="reference", budget={"simulations": 20})
    assert (result["kv"], result["best"]["certified"], result["full"]["certified"]) == ("reference", False, False)
    assert result["stats"]["layer_evaluations"] == result["stats"]["layer_evaluations_naive"]


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (422, {"space": {"operations": []}}, "no operations"),
        (422, {"space": {"min_length": 5, "max_length": 4}}, "min_length 5 is above max_length 4"),
        (422, {"space": {"min_length": 12, "max_length": 12, "max_repeats": 2}}, "widen"),
        (422, {"space": {"max_length": 13}}, "up to 13 visits; this model takes 12"),
        (422, {"space": {"name": "menu"}}, "no chain but the full one"),
        (422, {"space": {"name": "menu", "chains": []}}, "no chain but the full one"),
        (422, {"space": {"name": "menu", "chains": ["0,7"]}}, "layers 0 to 2"),
        (422, {"space": {"name": "drllm", "max_repeats": 2}}, "'drllm' has no max_repeats"),
        (422, {"budget": {"simulations": -1}}, "budget.simulations"),
        (422, {"budget": {"seconds": -0.5}}, "budget.seconds"),
        (422, {"budget": {"simulations": None}}, "no limit"),
        (422, {"budget": {"stop": "first"}, "reward": "margin"}, "graded"),
        (422, {"preset": "best"}, "preset"),
        (422, {"mcts": {"walk": "released"}}, "opens all children"),
        (422, {"reward": "luck"}, "reward"),
        (422, {"reward": "choice", "target": "4"}, "send them as 'choices'"),
        (422, {"reward": "wrong_target", "target": "4"}, "no truth"),
        (422, {"reward": "wrong_target", "target": "4", "truth": "4"}, "is the truth"),
        (422, {"reward": "verifier"}, "no verifier endpoint"),
        (502, {"reward": "verifier", "verifier": "nobody"}, "'nobody' is not registered"),
        (422, {"verifier": "http://169.254.169.254/"}, "goes with reward 'verifier'"),
        (422, {"kv": "reference", "choices": ["1", "2"]}, "kv 'reference' decodes prompts"),
        (413, {"target": "1" * 100, "max_new_tokens": 1000}, "the target has 101 tokens"),
    ],
)
def test_garbage_is_refused_by_name(fake: Any, status: int, body: dict[str, Any], words: str) -> None:
    assert words in search(fake, status, **body)["detail"]


def test_garbage_leaves_nothing_behind(fake: Any) -> None:
    assert search(fake)["best"]["certified"]
    assert fake.metric("fathom_running_sequences", model="tinylm") == 0
    assert fake.metric("fathom_kv_pages_used", model="tinylm") == 0
    assert fake.metric("fathom_queue_requests", model="tinylm") == 0

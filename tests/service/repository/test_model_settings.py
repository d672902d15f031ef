"""settings.json: what it may say, and how a file that cannot be used is told."""

import json
from typing import Any

import pytest

from models.errors import ArtifactError
from service.repository.model_settings import LIMITS, ModelSettings, parse_model_settings
from service.settings import Settings

THERE = ["1", "2", "9", "10", "beta"]


def read(**members: Any) -> ModelSettings:
    return parse_model_settings(json.dumps(members).encode(), "mine/settings.json")


@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        ({}, ["beta"]),
        ({"versions": "latest"}, ["beta"]),
        ({"versions": {"latest": 2}}, ["10", "beta"]),
        ({"versions": {"latest": 9}}, THERE),
        ({"versions": "all"}, THERE),
        ({"versions": ["2", "9"]}, ["2", "9"]),
        ({"labels": {"stable": "2"}}, ["2", "beta"]),
        ({"versions": ["9"], "labels": {"stable": "2"}, "split": {"stable": 1, "10": 2}}, ["2", "9", "10"]),
    ],
)
def test_policy_labels_and_split_decide_what_serves(members: dict[str, Any], wanted: list[str]) -> None:
    assert read(**members).wanted(THERE) == wanted


def test_split_is_by_version_whatever_names_it() -> None:
    settings = read(labels={"stable": "1", "old": "1", "canary": "2"}, split={"stable": 80, "old": 5, "canary": 15})
    assert settings.weights == {"1": 85, "2": 15}


def test_limits_take_the_place_of_the_servers() -> None:
    own = read(limits={"max_batch_rows": 4, "response_cache_bytes": 100}, backend="fake").over(Settings(max_inputs=7))
    assert (own.max_batch_rows, own.response_cache_bytes, own.backend, own.max_inputs) == (4, 100, "fake", 7)
    assert read().over(Settings()) == Settings()
    assert set(LIMITS) <= Settings.model_fields.keys()


def test_only_what_a_version_is_opened_with_opens_it_again() -> None:
    assert read(labels={"a": "1"}, split={"a": 1}, versions="all").opening == read().opening
    for members in ({"backend": "onnx"}, {"limits": {"num_threads": 2}}, {"warm_up": [{"inputs": ["1"]}]}):
        assert read(**members).opening != read().opening


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"colour": "red"}, ("mine/settings.json: colour: there is no such field", "labels")),
        ({"versions": "newest"}, ("versions: 'newest' is no policy", '{"latest": 2}')),
        ({"versions": {"latest": 0}}, ("versions:", "is no policy")),
        ({"versions": []}, ("versions:", "is no policy")),
        ({"versions": ["../1"]}, ("versions:", "is no policy")),
        ({"labels": {"../up": "1"}}, ("labels",)),
        ({"labels": {"a@b": "1"}}, ("labels",)),
        ({"labels": ["stable"]}, ("labels", "dictionary")),
        ({"split": {"a": -1}}, ("split.a", "greater than or equal to 0", "-1 came")),
        ({"split": {"a": 0}}, ("split", "weights are all 0")),
        ({"limits": {"max_batch_rows": 0}}, ("limits: max_batch_rows", "greater than or equal to 1")),
        ({"limits": {"port": 1}}, ("limits: port", "max_batch_rows")),
        ({"limits": {"num_threads": "two"}}, ("limits: num_threads", "integer")),
        ({"backend": "abacus"}, ("backend", "torchscript", "'abacus' came")),
        ({"warm_up": {"inputs": []}}, ("warm_up",)),
    ],
)
def test_bad_field_is_named_with_its_file(members: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ArtifactError) as caught:
        read(**members)
    for word in ("mine/settings.json", *words):
        assert word in str(caught.value)


def repr_of(content: bytes) -> str:
    return repr(content[:9])


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'"all"', b"[" * 5000], ids=repr_of)
def test_file_that_is_no_object_is_refused(content: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"mine/settings.json"):
        parse_model_settings(content, "mine/settings.json")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"versions": ["1", "7"]}, ("versions: there is no version '7'", "'beta'")),
        ({"labels": {"stable": "7"}}, ("labels.stable: there is no version '7'",)),
        ({"split": {"7": 1}}, ("split.7: there is no version '7'",)),
        ({"labels": {"beta": "1"}}, ("labels.beta: a version has this name",)),
    ],
)
def test_names_of_what_is_not_there_are_refused(members: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ArtifactError) as caught:
        read(**members).check("mine/settings.json", THERE)
    for word in words:
        assert word in str(caught.value)

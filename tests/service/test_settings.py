"""Settings: from the environment once, refused by name."""

from pathlib import Path

import pytest

from service.settings import Settings, SettingsError, read_settings


def test_environment_is_read_and_overrides_win() -> None:
    environment = {"FATHOM_PORT": "9000", "fathom_host": "0.0.0.0", "HOME": "/home/ada", "FATHOM_REPOSITORY": "/models"}
    settings = read_settings(environment, port=9001, backend=None)
    assert (settings.host, settings.port) == ("0.0.0.0", 9001)
    assert settings.repository == Path("/models")
    assert settings.backend == "auto"


def test_ladders_are_json() -> None:
    settings = read_settings({"FATHOM_DEGRADE": '{"arith": ["0-4,6-11", "0-3,8-11"]}'})
    assert settings.degrade == {"arith": ("0-4,6-11", "0-3,8-11")}


def test_models_for_timing_are_names() -> None:
    assert read_settings({"FATHOM_TIMING": "arith-hybrid, other"}).timing == ("arith-hybrid", "other")
    assert read_settings({"FATHOM_TIMING": ""}).timing == ()


def test_defaults_need_no_environment() -> None:
    assert read_settings({}) == Settings()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"FATHOM_PROT": "1"}, ("FATHOM_PROT", "FATHOM_PORT")),
        ({"FATHOM_PORT": "many"}, ("FATHOM_PORT", "'many'", "integer")),
        ({"FATHOM_PORT": "70000"}, ("FATHOM_PORT", "'70000'", "65535")),
        ({"FATHOM_BACKEND": "abacus"}, ("FATHOM_BACKEND", "'abacus'", "torchscript")),
        ({"FATHOM_MAX_BATCH_ROWS": "0"}, ("FATHOM_MAX_BATCH_ROWS", "'0'", "1")),
        ({"FATHOM_DRAIN_S": "nan"}, ("FATHOM_DRAIN_S", "nan")),
        ({"FATHOM_DEGRADE": "arith"}, ("FATHOM_DEGRADE", "no valid JSON at character 0")),
        ({"FATHOM_DEGRADE": '{"arith": "0-3"}'}, ("FATHOM_DEGRADE", "0-3")),
    ],
)
def test_unknown_or_impossible_settings_are_named(environment: dict[str, str], words: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings(environment)
    for word in words:
        assert word in str(caught.value)

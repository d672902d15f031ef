"""What generation_config.json says reaches the manifest, or is named as what no request gets here."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig
from typer import Typer
from typer.testing import CliRunner

from exporters import cli
from exporters.generation import end_token_ids, sampling_spec
from models.artifact import LanguageSpec, read_manifest
from models.errors import ArtifactError
from models.sampling import SamplingSpec

# As published with Qwen2.5-7B-Instruct and Llama-3.2-1B-Instruct.
QWEN = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.05,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "transformers_version": "4.37.0",
}
LLAMA = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [128001], "transformers_version": "4.45"}


def _checkpoint(folder: Path, said: Any) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (LLAMA, SamplingSpec(temperature=0.6, top_p=0.9)),
        (QWEN, SamplingSpec(temperature=0.7, top_p=0.8, top_k=20, not_served=("repetition_penalty 1.05",))),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, SamplingSpec(temperature=0, top_p=0.9)),
        ({"temperature": 1, "max_new_tokens": 48}, SamplingSpec(temperature=1.0, max_new_tokens=48)),
        ({"temperature": None, "top_k": None, "do_sample": True}, None),
        ({"eos_token_id": 2, "max_length": 4096, "_from_model_config": True}, None),
        ({"repetition_penalty": 1.0, "num_beams": 1, "min_p": 0.0, "suppress_tokens": []}, None),
        (
            {"min_p": 0.1, "suppress_tokens": [7], "of_next_year": "a"},
            SamplingSpec(not_served=("min_p 0.1", "suppress_tokens [7]", 'of_next_year "a"')),
        ),
    ],
)
def test_what_the_sampler_does_is_taken_and_the_rest_named(tmp_path: Path, said: Any, wanted: Any) -> None:
    assert sampling_spec(_checkpoint(tmp_path, said)) == wanted


def test_file_that_transformers_writes_by_itself_asks_for_nothing_else(tmp_path: Path) -> None:
    config = GenerationConfig(temperature=0.6, top_p=0.9, do_sample=True, eos_token_id=[3, 4])
    config.save_pretrained(tmp_path)
    assert sampling_spec(tmp_path) == SamplingSpec(temperature=0.6, top_p=0.9)
    assert end_token_ids(tmp_path, 1) == (3, 4)
    _checkpoint(tmp_path, config.to_dict())  # every field with its default, as some tools write it
    spec = sampling_spec(tmp_path)
    assert spec is not None
    assert spec.not_served == ()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"temperature": "warm"}, "temperature 'warm'"),
        ({"temperature": 1e-5}, "at least 0.001"),
        ({"temperature": True}, "temperature True"),
        ({"top_p": 0}, "top_p 0"),
        ({"top_k": -1}, "top_k -1"),
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"do_sample": "no"}, "do_sample 'no'"),
        ([], "no object"),
    ],
)
def test_value_that_no_sampler_could_take_is_refused_by_name(tmp_path: Path, said: Any, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        sampling_spec(_checkpoint(tmp_path, said))


@pytest.mark.parametrize(
    "command", [["export", "--formats", "safetensors"], ["import", "--name", "tiny"]], ids=["export", "import"]
)
def test_commands_carry_it_and_warn_of_the_rest(command: list[str], lm_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = _checkpoint(shutil.copytree(lm_checkpoint, tmp_path / "tiny"), {**QWEN, "eos_token_id": 2})
    app = Typer()
    app.command("export")(cli.export)
    app.command("import")(cli.adopt)
    first, *rest = command
    result = CliRunner().invoke(app, [first, str(checkpoint), *rest, "--repository", str(tmp_path / "repository")])
    assert result.exit_code == 0, result.output
    assert "WARNING: generation_config.json says repetition_penalty 1.05; that is not served" in result.stderr
    language = read_manifest(tmp_path / "repository" / "tiny" / "1").language
    assert language is not None
    assert language.sampling is not None
    assert (language.sampling.temperature, language.sampling.top_k, language.eos_token_ids) == (0.7, 20, (2,))


def test_manifest_of_before_says_nothing_of_sampling() -> None:
    before = {"vocab_size": 9, "max_length": 6, "num_kv_heads": 2, "head_size": 3, "eos_token_ids": []}
    assert LanguageSpec.model_validate({**before, "tokenizer": "tokenizer.json"}).sampling is None

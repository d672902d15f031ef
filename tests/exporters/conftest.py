"""A tiny language model and a tiny classifier, exported once for all tests of this folder."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from exporters.export import export_checkpoint
from exporters.publish import Exported
from models import catalogue
from models.lm import weights
from models.lm.config import LMConfig
from models.lm.model import LanguageModel
from models.mixers.residual_mlp import ResidualMLP, ResidualMLPConfig

LM = LMConfig(
    vocab_size=48,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    eos_token_id=1,
)
MLP = ResidualMLPConfig(num_features=6, num_classes=3, hidden_size=8, expansion=2, num_layers=3)


@pytest.fixture(scope="session")
def lm_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face Llama directory of random weights, with a tokenizer of one token per character."""
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    torch.manual_seed(0)
    weights.save(LanguageModel(LM), directory)
    characters = "0123456789+-*=,s_$abcdefghijklmnopqrtuvwxyzABCDE"
    tokenizer = Tokenizer(WordLevel({char: i for i, char in enumerate(characters)}))
    tokenizer.pre_tokenizer = Split("", "isolated")
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3]}))
    (directory / "README.md").write_text("# tiny\n\nRandom. Licence: Apache-2.0.\n\n| command | `make tiny` |\n")
    return directory


@pytest.fixture(scope="session")
def mlp_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A residual MLP of random weights."""
    directory = tmp_path_factory.mktemp("checkpoints") / "mlp"
    torch.manual_seed(0)
    catalogue.save(ResidualMLP(MLP), directory)
    return directory


@pytest.fixture(scope="session")
def exported_lm(lm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The language model in every format."""
    return export_checkpoint(lm_checkpoint, tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="session")
def exported_mlp(mlp_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The classifier in every format."""
    return export_checkpoint(mlp_checkpoint, tmp_path_factory.mktemp("repository"), name="classifier", version="7")

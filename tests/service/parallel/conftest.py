"""A small language model without weights, for ranks that compute with whole numbers."""

import pytest

from models.artifact import LanguageSpec, LayersSpec, Manifest, TensorSpec

NUM_LAYERS = 4


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    """A language model of four layers and 18 tokens."""
    return Manifest(
        name="words",
        version="1",
        kind="causal-lm",
        inputs=(TensorSpec(name="token_ids", datatype="INT64", shape=(-1, -1)),),
        outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, -1, 18)),),
        layers=LayersSpec(count=NUM_LAYERS, residual_form="standard", cost=(1,) * NUM_LAYERS),
        language=LanguageSpec(
            vocab_size=18, max_length=48, num_kv_heads=1, head_size=2, eos_token_ids=(0,), tokenizer="tokenizer.json"
        ),
        forms={},
        files={},
    )

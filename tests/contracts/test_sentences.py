"""What holds of sentence-transformers directories, against that package on the same files."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import PreTrainedTokenizerFast

from exporters.describe_encoder import encoder_spec
from exporters.export import export_checkpoint
from models.artifact import EncoderSpec, read_manifest
from models.chain import Chain
from models.checkpoint import load_checkpoint
from models.encoders.model import EncoderModel
from models.encoders.tokenizer import EncoderTokenizer
from models.errors import ArtifactError, LengthError
from service.backends.open import open_backend
from service.engine.encoder import Encoded, EncoderEngine
from service.engine.engine import EngineLimits
from service.engine.queue import Limits, QueueLimits
from service.metrics import Metrics, ModelMetrics
from tests.contracts.encoders import BASES, NUM_LAYERS, Encoder, make, make_sentence

# Of 1 - cosine; and of numbers that are not of length 1.
COSINE, TOLERANCE = 1e-5, 1e-4
TEXTS = ("w5 w6 w7", "w90", "", "w8 strange W9 w10 w11 w12 w13 w14 w15 w16", " ".join(["w20"] * 60))
MAX_LENGTH = 20
SPECIAL = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
LIMITS = EngineLimits(Limits(8, 256), QueueLimits(64, 64, 4096), max_chain_length=12, search_bytes=1 << 20)


def saved(directory: Path, model_type: str, pooling: Any, *more: Any, **texts: Any) -> SentenceTransformer:
    """A directory as the package itself saves it."""
    plain = directory / "plain"
    make(next(one for one in BASES if one.model_type == model_type), plain)
    PreTrainedTokenizerFast(tokenizer_file=str(plain / "tokenizer.json"), **SPECIAL).save_pretrained(plain)
    encoder = Transformer(str(plain), max_seq_length=MAX_LENGTH, **texts)
    modules = [encoder, Pooling(32, pooling), *more]
    SentenceTransformer(modules=modules, prompts={"query": "w30 w31 "}).save(str(directory / "saved"))
    return SentenceTransformer(str(directory / "saved"), device="cpu")


def ours(directory: Path, folder: Path) -> tuple[EncoderModel, EncoderSpec, EncoderTokenizer]:
    model = load_checkpoint(directory)
    assert isinstance(model, EncoderModel)
    folder.mkdir(exist_ok=True)
    spec = encoder_spec(model, directory, folder)
    assert spec is not None
    return model, spec, EncoderTokenizer(folder / spec.tokenizer)


@torch.inference_mode()
def embedded(directory: Path, folder: Path, text: str, prompt: str = "") -> np.ndarray:
    model, spec, tokenizer = ours(directory, folder)
    text = prompt + text
    tokens = tokenizer.encode(text.lower() if spec.lowers_case else text, None, spec.max_length, cuts=True)
    inputs = {"token_ids": torch.tensor([tokens.ids]), "lengths": torch.tensor([len(tokens.ids)])}
    if spec.has_token_types:
        inputs["token_types"] = torch.tensor([tokens.types])
    return model.along(inputs, Chain.full(NUM_LAYERS))[0].numpy()


def assert_same(got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.shape == wanted.shape
    cosine = float(got.astype(np.float64) @ wanted / np.linalg.norm(got) / np.linalg.norm(wanted))
    assert 1 - cosine <= COSINE
    assert np.abs(got - wanted).max() <= TOLERANCE * max(1.0, float(np.abs(wanted).max()))


CASES: list[Any] = [
    pytest.param("bert", "mean", (Normalize(),), {}, id="bert-mean-normal"),
    pytest.param("bert", "cls", (), {"do_lower_case": True}, id="bert-cls-lower"),
    pytest.param("roberta", ("max", "lasttoken"), (), {}, id="roberta-max-last"),
    pytest.param("distilbert", "mean_sqrt_len_tokens", (Dense(32, 24), Normalize()), {}, id="distilbert-dense"),
    pytest.param(
        "modernbert",
        ("cls", "mean", "max"),
        (Dense(96, 40, bias=False, activation_function=torch.nn.GELU()), Dense(40, 8)),
        {},
        id="modernbert-combined",
    ),
]


@pytest.mark.parametrize(("model_type", "pooling", "more", "texts"), CASES)
def test_embeddings_are_those_of_sentence_transformers(
    model_type: str, pooling: Any, more: tuple[Any, ...], texts: dict[str, Any], tmp_path: Path
) -> None:
    theirs = saved(tmp_path, model_type, pooling, *more, **texts)
    for text in TEXTS:
        assert_same(embedded(tmp_path / "saved", tmp_path / "ours", text), theirs.encode(text))
    wanted = theirs.encode(TEXTS[0], prompt_name="query")
    _, spec, _ = ours(tmp_path / "saved", tmp_path / "ours")
    assert spec.max_length == MAX_LENGTH
    assert_same(embedded(tmp_path / "saved", tmp_path / "ours", TEXTS[0], spec.prompts["query"]), wanted)


@pytest.mark.parametrize(
    ("activation", "said"),
    [
        (torch.nn.Sigmoid(), {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}),
        (torch.nn.Identity(), {}),
    ],
    ids=["probability-types", "raw-no-types"],
)
def test_cross_encoders_score_pairs_as_the_package_does(
    activation: torch.nn.Module, said: dict[str, Any], tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    one_label = {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    make(Encoder("bert", "bert", "classify", one_label), plain)
    PreTrainedTokenizerFast(tokenizer_file=str(plain / "tokenizer.json"), **SPECIAL, **said).save_pretrained(plain)
    CrossEncoder(str(plain), activation_fn=activation, device="cpu").save(str(tmp_path / "saved"))
    theirs = CrossEncoder(str(tmp_path / "saved"), device="cpu")
    assert not export_checkpoint(tmp_path / "saved", tmp_path / "repository", ["safetensors"], "m").refused
    pairs = [["w5 w6", "w7"], ["w9", "w8 w10 w11"]]

    async def run() -> list[Encoded]:
        directory = tmp_path / "repository" / "m" / "1"
        manifest, metrics = read_manifest(directory), ModelMetrics(Metrics(), "m", "1")
        tokenizer = EncoderTokenizer(directory / "tokenizer.json")
        engine = EncoderEngine(manifest, open_backend(manifest, directory), LIMITS, metrics, tokenizer)
        done = await engine.encode(pairs, "full")
        await engine.close()
        return done

    got = [float(one.values[0]) for one in asyncio.run(run())]
    assert got == pytest.approx(theirs.predict(pairs).tolist(), abs=TOLERANCE)


def test_directories_of_the_first_releases_are_read(tmp_path: Path) -> None:
    make_sentence(tmp_path, max_seq_length=11)
    PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), **SPECIAL).save_pretrained(tmp_path)
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    for text in TEXTS:
        assert_same(embedded(tmp_path, tmp_path / "ours", text), theirs.encode(text))
    _, spec, tokenizer = ours(tmp_path, tmp_path / "ours")
    with pytest.raises(LengthError, match="62 tokens do not fit; the model takes 11"):
        tokenizer.encode(TEXTS[-1], None, spec.max_length)


@pytest.mark.parametrize(
    ("file", "says", "named"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, "weightedmean"),
        ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt"),
        ("1_Pooling/config.json", {"word_embedding_dimension": 31}, "31"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.modules.activation.Hardtanh"}, "Hardtanh"),
        ("2_Dense/config.json", {"in_features": 33}, "33"),
        ("2_Dense/config.json", {"use_residual": True}, "use_residual"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "token_embeddings"),
        ("2_Dense/config.json", {"out_features": 25}, r"linear\.weight|\[25, 32\]"),
        ("config_sentence_transformers.json", {"default_prompt_name": "absent"}, "absent"),
        ("config_sentence_transformers.json", {"truncate_dim": 8}, "truncate_dim"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "SparseEncoder"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(file: str, says: dict[str, Any], named: str, tmp_path: Path) -> None:
    make_sentence(tmp_path)
    (tmp_path / file).write_text(json.dumps({**json.loads((tmp_path / file).read_text()), **says}))
    with pytest.raises(ArtifactError, match=named):
        ours(tmp_path, tmp_path / "ours")


@pytest.mark.parametrize("kind", ["sentence_transformers.models.LSTM", "someones.code.Module"])
def test_unknown_modules_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    make_sentence(tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[2]["type"] = kind
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ArtifactError, match=kind.rpartition(".")[2]):
        load_checkpoint(tmp_path)


def test_projection_in_a_pickle_is_refused(tmp_path: Path) -> None:
    make_sentence(tmp_path)
    weights = tmp_path / "2_Dense" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(ArtifactError, match=r"2_Dense.*pytorch_model\.bin.*pickles"):
        load_checkpoint(tmp_path)


def test_head_that_was_saved_with_the_weights_is_left_out(tmp_path: Path) -> None:
    make_sentence(tmp_path)
    before = embedded(tmp_path, tmp_path / "ours", TEXTS[0])
    weights = tmp_path / "model.safetensors"
    save_file({**load_file(weights), "cls.predictions.bias": torch.zeros(99)}, weights)
    assert (embedded(tmp_path, tmp_path / "ours", TEXTS[0]) == before).all()
    (tmp_path / "modules.json").unlink()
    with pytest.raises(ArtifactError, match=r"cls\.predictions\.bias"):
        load_checkpoint(tmp_path)

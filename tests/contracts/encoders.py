"""The encoder architectures that are read from Hugging Face directories: one row each, small, with random weights."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

VOCABULARY = 99
MAX_LENGTH = 48
NUM_LAYERS = 3
CLS, SEP, MASK, PAD = 2, 3, 4, 0
LABELS = {0: "calm", 1: "glad", 2: "sad", 3: "wild"}
HEADS: dict[str, Any] = {
    "none": AutoModel,
    "classify": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
    "fill-mask": AutoModelForMaskedLM,
}
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_LENGTH,
    "pad_token_id": PAD,
    "id2label": LABELS,
    "label2id": {label: number for number, label in LABELS.items()},
}
_ROBERTA = {"max_position_embeddings": MAX_LENGTH + 1, "type_vocab_size": 1}
_DISTILBERT = {"dim": 32, "hidden_dim": 48, "n_layers": NUM_LAYERS, "n_heads": 4}
_MODERN = {"local_attention": 6, "cls_token_id": CLS, "sep_token_id": SEP, "bos_token_id": CLS, "eos_token_id": SEP}
_BIASED = {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True}


@dataclass(frozen=True)
class Encoder:
    """A `model_type` of transformers with a head, and what its config.json says beyond the sizes."""

    name: str
    model_type: str
    head: str
    says: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}-{self.head}"


_FAMILIES = {
    "bert": ("bert", {}),
    "roberta": ("roberta", _ROBERTA),
    "xlm-roberta": ("xlm-roberta", {**_ROBERTA, "hidden_act": "relu", "layer_norm_eps": 1e-5}),
    "distilbert": ("distilbert", {**_DISTILBERT, "activation": "relu"}),
    "modernbert": ("modernbert", _MODERN),
}
ENCODERS = (
    *(Encoder(name, kind, head, says) for name, (kind, says) in _FAMILIES.items() for head in HEADS),
    Encoder("bert-untied", "bert", "fill-mask", {"tie_word_embeddings": False, "hidden_act": "gelu_new"}),
    Encoder("roberta-untied", "roberta", "fill-mask", {**_ROBERTA, "tie_word_embeddings": False}),
    Encoder("modernbert-mean", "modernbert", "classify", {**_MODERN, **_BIASED, "classifier_pooling": "mean"}),
    Encoder("modernbert-local", "modernbert", "none", {**_MODERN, "layer_types": ["sliding_attention"] * NUM_LAYERS}),
)
BASES = tuple(one for one in ENCODERS if one.head == "none")


def make(encoder: Encoder, directory: Path) -> PreTrainedModel:
    """Save a model with random weights and a tokenizer; layers change the stream enough for chains to differ."""
    config = AutoConfig.for_model(encoder.model_type, **{**_SIZES, **encoder.says})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = HEADS[encoder.head].from_config(config, attn_implementation="eager").eval()
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(directory)
    write_tokenizer(directory)
    return model


def write_tokenizer(directory: Path) -> None:
    """One token a word, `w5` and the like, between [CLS] and [SEP]."""
    special = {"[PAD]": PAD, "[UNK]": 1, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": MASK}
    words = special | {f"w{token_id}": token_id for token_id in range(len(special), VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(special))
    tokenizer.pre_tokenizer = Whitespace()
    ends = [("[CLS]", CLS), ("[SEP]", SEP)]
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends)
    tokenizer.save(str(directory / "tokenizer.json"))


def make_sentence(directory: Path, model_type: str = "bert", **texts: Any) -> None:
    """Save a sentence-transformers directory as its first releases did: mean pooling, a projection, normalised."""
    make(next(one for one in BASES if one.model_type == model_type), directory)
    modules = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize"))
    listed = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{name}"}
        for place, (path, name) in enumerate(modules)
    ]
    projection = torch.randn(24, 32, generator=torch.Generator().manual_seed(1)) * 0.3
    written: dict[str, Any] = {
        "modules.json": listed,
        "sentence_bert_config.json": {"max_seq_length": 24, "do_lower_case": False, **texts},
        "config_sentence_transformers.json": {"prompts": {"query": "w7 w8 ", "plain": ""}},
        "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True},
        "2_Dense/config.json": {"in_features": 32, "out_features": 24, "bias": False},
    }
    for name, document in written.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(json.dumps(document))
    save_file({"linear.weight": projection}, directory / "2_Dense" / "model.safetensors")

"""The decoder architectures that are read from Hugging Face directories: one row each, small, with random weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 99
MAX_LENGTH = 96
NUM_LAYERS = 3
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LENGTH,
    "bos_token_id": 1,
    "eos_token_id": 98,
    "pad_token_id": 0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}
_MSCALE = {"mscale": 0.7, "mscale_all_dim": 0.9, "beta_fast": 16.0, "beta_slow": 2.0}
_LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": MAX_LENGTH,
    "factor": 4.0,
}
_EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


@dataclass(frozen=True)
class Decoder:
    """A `model_type` of transformers and what its config.json says beyond the sizes."""

    name: str
    model_type: str
    says: dict[str, Any]

    def __str__(self) -> str:
        return self.name


DECODERS = (
    Decoder("llama-2", "llama", {"num_key_value_heads": 4}),
    Decoder("llama-3", "llama", {"rope_parameters": {"rope_theta": 500.0, **_LLAMA3}}),
    Decoder("llama-biased-tied", "llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    Decoder("llama-wide-heads", "llama", {"head_dim": 12}),
    Decoder("llama-linear", "llama", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}}),
    Decoder("llama-dynamic", "llama", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0}}),
    Decoder("mistral", "mistral", {"sliding_window": 7}),
    Decoder("qwen2.5", "qwen2", {}),
    Decoder(
        "qwen2-windowed",
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    Decoder("qwen2-yarn", "qwen2", {"rope_parameters": {"rope_theta": 1e4, **_YARN}}),
    Decoder("qwen3", "qwen3", {"head_dim": 16, "rope_parameters": {"rope_theta": 1e4, **_YARN, **_MSCALE}}),
    Decoder("phi-3", "phi3", {"sliding_window": 9}),
    Decoder(
        "phi-3-long", "phi3", {"original_max_position_embeddings": 96, "rope_parameters": {"rope_theta": 1e4, **_LONG}}
    ),
    Decoder("phi-4-mini", "phi3", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    Decoder("gemma-2", "gemma2", {"head_dim": 12, "sliding_window": 6, "query_pre_attn_scalar": 10}),
    Decoder("olmo-2", "olmo2", {}),
    Decoder("gpt-2", "gpt2", {"num_key_value_heads": 4}),
    Decoder("gpt-2-scaled-by-depth", "gpt2", {"scale_attn_by_inverse_layer_idx": True, "n_inner": 40}),
    Decoder("pythia", "gpt_neox", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    Decoder("gpt-neox-in-sequence", "gpt_neox", {"use_parallel_residual": False}),
    Decoder("olmoe", "olmoe", {**_EXPERTS, "clip_qkv": 1.5}),
    Decoder(
        "qwen2-moe",
        "qwen2_moe",
        {**_EXPERTS, "shared_expert_intermediate_size": 40, "decoder_sparse_step": 2, "norm_topk_prob": True},
    ),
    Decoder("qwen3-moe", "qwen3_moe", {**_EXPERTS, "head_dim": 8, "norm_topk_prob": True, "mlp_only_layers": [1]}),
)


def make(decoder: Decoder, directory: Path) -> PreTrainedModel:
    """Save a model with random weights; layers change the stream enough for chains to differ."""
    config = AutoConfig.for_model(decoder.model_type, **{**_SIZES, **decoder.says})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(directory)
    words = {f"w{token_id}": token_id for token_id in range(VOCABULARY)}
    Tokenizer(WordLevel(words, unk_token="w0")).save(str(directory / "tokenizer.json"))
    return model

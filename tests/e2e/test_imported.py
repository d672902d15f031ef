"""A model somebody else saved, two commands later: imported, served, and answering as transformers does."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from models.chain import Chain
from models.checkpoint import load_checkpoint
from tests.e2e.conftest import FATHOM, Process

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = [{"role": "system", "content": "Brief."}, {"role": "user", "content": "héllo 🙂 wörld, 1 + 1?"}]
NEW_TOKENS = 24


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as Qwen's."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    trained.train_from_iterator([Path(__file__).read_text()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=trained, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2.5 of random weights in bfloat16 shards, as `save_pretrained` leaves it."""
    directory = tmp_path_factory.mktemp("checkpoints") / "qwen"
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=448,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.to(torch.bfloat16).save_pretrained(directory, max_shard_size="100KB")
    make_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def server(checkpoint: Path, start: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    repository = tmp_path_factory.mktemp("imported")
    subprocess.run(
        (FATHOM, "import", checkpoint, "--name", "qwen", "--repository", repository), check=True, timeout=120
    )
    with start("--repository", str(repository)) as process:
        yield process


def test_conversation_is_answered_as_transformers_answers_it(checkpoint: Path, server: Process) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = make_tokenizer()
    inputs = tokenizer.apply_chat_template(TALK, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    found = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)[0, inputs["input_ids"].shape[1] :]
    body = {"model": "qwen", "messages": TALK, "temperature": 0, "max_tokens": NEW_TOKENS}
    answer = server.post("/v1/chat/completions", **body)
    assert answer["choices"][0]["message"]["content"] == tokenizer.decode(found, skip_special_tokens=True)
    assert answer["usage"]["prompt_tokens"] == inputs["input_ids"].shape[1]


def test_chain_is_answered_as_the_plain_loop(checkpoint: Path, server: Process) -> None:
    chain, ids = Chain((0, 1, 1, 3, 5)), make_tokenizer()("depth of a fathom").input_ids
    model = load_checkpoint(checkpoint)
    tokens = list(ids)
    with torch.inference_mode():
        for _ in range(8):
            tokens.append(int(model.along({"token_ids": torch.tensor([tokens])}, chain)[0, -1].argmax()))
    body = {"inputs": ["depth of a fathom"], "chain": chain.format(), "parameters": {"max_new_tokens": 8}}
    (output,) = server.post("/predict", model="qwen", **body)["outputs"]
    assert output["token_ids"] == tokens[len(ids) :]
    assert output["layers_executed"] == 5 * 8

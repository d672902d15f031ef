"""What holds of every architecture read from a Hugging Face directory, against transformers on the same weights."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from models.artifact import LanguageSpec, LayersSpec, Manifest, TensorSpec
from models.chain import Chain
from models.checkpoint import load_checkpoint
from models.lm.config import ExpertsConfig, LMConfig
from models.lm.mlp import Experts
from models.lm.model import LanguageModel
from models.lm.tokenizer import Tokenizer
from service.backends.parts import LanguageBackend, Parts
from service.backends.torch_arrays import TorchArrays, module_part
from service.engine.engine import EngineLimits
from service.engine.language import LanguageEngine
from service.engine.queue import Limits, QueueLimits
from service.engine.sampling import Sampling, choose
from service.metrics import Metrics, ModelMetrics
from tests.contracts.decoders import DECODERS, NUM_LAYERS, VOCABULARY, Decoder, make

LIMITS = EngineLimits(
    batch=Limits(max_rows=4, max_tokens=256, max_prefill_tokens=8),
    queue=QueueLimits(max_requests=64, max_rows=64, max_tokens=2048),
    max_chain_length=12,
    search_bytes=1 << 20,
)
TOLERANCE = 1e-4
# Of the standard deviation of the logits: bfloat16 keeps eight bits, and three layers add up what it drops.
BFLOAT16_TOLERANCE = 0.15
CHAINS = [Chain(chain) for chain in ((0, 2), (1,), (0, 1, 1, 2), (2, 1, 0), (0, 1, 2, 0, 1, 2))]


@dataclass(frozen=True)
class Pair:
    """One model in transformers and in ours."""

    theirs: Any
    ours: LanguageModel
    directory: Path


@pytest.fixture(scope="module", params=DECODERS, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    directory = tmp_path_factory.mktemp("decoder")
    decoder: Decoder = request.param
    theirs = make(decoder, directory)
    ours = load_checkpoint(directory)
    assert isinstance(ours, LanguageModel)
    return Pair(theirs, ours, directory)


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(1, VOCABULARY - 1, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def logits(model: LanguageModel, token_ids: Sequence[int], chain: Chain) -> Tensor:
    with torch.inference_mode():
        return model.along({"token_ids": torch.tensor([token_ids])}, chain)[0]


def difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a.double() - b.double()).abs().max())


def test_logits_are_transformers(pair: Pair) -> None:
    ids = prompt(40)
    with torch.inference_mode():
        wanted = pair.theirs(torch.tensor([ids])).logits[0]
    assert difference(logits(pair.ours, ids, Chain.full(NUM_LAYERS)), wanted) <= TOLERANCE


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_any_chain_is_transformers_own_layers_in_that_order(chain: Chain, pair: Pair) -> None:
    ids = prompt(20)
    with torch.inference_mode():
        wanted = their_layers(pair.theirs, torch.tensor([ids]), chain)[0]
    got = logits(pair.ours, ids, chain)
    assert difference(got, wanted) <= TOLERANCE
    assert difference(got, logits(pair.ours, ids, Chain.full(NUM_LAYERS))) > 100 * TOLERANCE


def their_layers(model: Any, token_ids: Tensor, chain: Chain) -> Tensor:
    """Logits of transformers' modules called by hand, without a cache."""
    stack, config = model.base_model, model.config
    positions = torch.arange(token_ids.shape[1])[None]
    is_gpt2, is_neox = config.model_type == "gpt2", config.model_type == "gpt_neox"
    hidden = (stack.wte if is_gpt2 else stack.embed_in if is_neox else stack.embed_tokens)(token_ids)
    known: dict[str, Any] = {"config": config, "inputs_embeds": hidden, "attention_mask": None}
    known |= {"past_key_values": None, "position_ids": positions}
    full = create_causal_mask(**known)
    types = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    near = create_sliding_window_causal_mask(**known) if window else full
    if config.model_type in ("mistral", "phi3"):
        types = ["sliding_attention"] * len(types)
    layers = stack.h if is_gpt2 else stack.layers
    rotary = {} if is_gpt2 else {"position_embeddings": stack.rotary_emb(hidden, positions)}
    if is_gpt2:
        hidden = hidden + stack.wpe(positions)
    for layer in chain.layers:
        mask = near if types[layer] == "sliding_attention" else full
        hidden = layers[layer](hidden, attention_mask=mask, position_ids=positions, **rotary)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    norm = stack.ln_f if is_gpt2 else stack.final_layer_norm if is_neox else stack.norm
    scores: Tensor = model.get_output_embeddings()(norm(hidden))
    cap = getattr(config, "final_logit_softcapping", None)
    return scores if cap is None else torch.tanh(scores / cap) * cap


def test_padding_and_neighbours_change_nothing(pair: Pair) -> None:
    chain, rows = CHAINS[2], [prompt(length, seed=length) for length in (3, 17, 9)]
    padded = torch.zeros(len(rows), 17, dtype=torch.int64)
    for row, ids in enumerate(rows):
        padded[row, : len(ids)] = torch.tensor(ids)
    with torch.inference_mode():
        together = pair.ours.along({"token_ids": padded}, chain)
    for row, ids in enumerate(rows):
        assert difference(together[row, : len(ids)], logits(pair.ours, ids, chain)) <= TOLERANCE


# Generation through the engine: pieces of prompts, pages of keys and values, several sequences at once.


def generate(pair: Pair, prompts: Sequence[Sequence[int]], chain: Chain, sampling: Sampling) -> list[tuple[int, ...]]:
    """Tokens of each prompt, generated together."""
    manifest = manifest_of(pair.ours)
    assert manifest.language is not None
    parts = Parts(
        module_part(pair.ours.embed),
        tuple(module_part(layer) for layer in pair.ours.layers),
        module_part(pair.ours.head),
    )
    backend = LanguageBackend(parts, manifest.language, TorchArrays(torch.device("cpu")), num_pages=600, page_size=8)

    async def run() -> list[tuple[int, ...]]:
        tokenizer = Tokenizer(pair.directory / "tokenizer.json")
        engine = LanguageEngine(manifest, backend, LIMITS, ModelMetrics(Metrics(), "m", "1"), tokenizer)
        completions = await engine.generate(prompts, chain.format(), sampling)
        await engine.close()
        return [completion.token_ids for completion in completions]

    return asyncio.run(run())


def manifest_of(model: LanguageModel) -> Manifest:
    config = model.config
    return Manifest(
        name="m",
        version="1",
        kind="causal-lm",
        inputs=(TensorSpec(name="token_ids", datatype="INT64", shape=(-1, -1)),),
        outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, -1, VOCABULARY)),),
        layers=LayersSpec(count=NUM_LAYERS, residual_form=model.residual_form, cost=(1,) * NUM_LAYERS),
        language=LanguageSpec(
            vocab_size=config.vocab_size,
            max_length=config.max_length,
            num_kv_heads=config.num_key_value_heads,
            head_size=config.head_size,
            eos_token_ids=(),
            tokenizer="tokenizer.json",
        ),
        forms={},
        files={},
    )


@pytest.mark.parametrize(
    "sampling",
    [Sampling(max_new_tokens=64), Sampling(max_new_tokens=64, temperature=0.9, top_k=30, top_p=0.95, seed=7)],
    ids=["greedy", "sampled"],
)
def test_64_tokens_are_those_of_transformers(sampling: Sampling, pair: Pair) -> None:
    prompts = [prompt(length, seed=length) for length in (5, 21, 12)]
    got = generate(pair, prompts, Chain.full(NUM_LAYERS), sampling)
    for ids, tokens in zip(prompts, got, strict=True):
        assert list(tokens) == theirs_generated(pair.theirs, ids, sampling)


def theirs_generated(model: Any, ids: Sequence[int], sampling: Sampling) -> list[int]:
    """Transformers' logits at every step, with its own cache, and our choice among them."""
    random, cache = np.random.Generator(np.random.Philox(sampling.seed)), None
    tokens, new = list(ids), list(ids)
    with torch.inference_mode():
        for _ in range(sampling.max_new_tokens):
            answer = model(torch.tensor([new]), past_key_values=cache, use_cache=True)
            cache = answer.past_key_values
            new = [choose(answer.logits[0, -1].numpy(), sampling, random).token_id]
            tokens += new
    return tokens[len(ids) :]


def test_tokens_along_a_chain_are_those_of_the_plain_loop(pair: Pair) -> None:
    chain, prompts = CHAINS[2], [prompt(length, seed=length) for length in (4, 19)]
    got = generate(pair, prompts, chain, Sampling(max_new_tokens=24))
    for ids, tokens in zip(prompts, got, strict=True):
        everything = logits(pair.ours, [*ids, *tokens[:-1]], chain)  # each token follows from those before it
        assert everything[len(ids) - 1 :].argmax(-1).tolist() == list(tokens)


def test_bfloat16_is_as_close_as_bfloat16_can_be(pair: Pair) -> None:
    ids = prompt(30)
    wanted = logits(pair.ours, ids, Chain.full(NUM_LAYERS))
    model = load_checkpoint(pair.directory, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert isinstance(model, LanguageModel)
    got = logits(model, ids, Chain.full(NUM_LAYERS))
    assert got.dtype is torch.bfloat16
    typical = ((got.double() - wanted.double()) ** 2).mean().sqrt() / wanted.std()
    assert typical <= BFLOAT16_TOLERANCE


def test_experts_one_by_one_are_all_experts_at_once() -> None:
    config = LMConfig(9, 16, 24, 1, 2, 2, 32, experts=ExpertsConfig(6, 2, 10, (0,)))
    experts = Experts(config, config.experts)  # type: ignore[arg-type]
    x = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        weights, chosen = torch.softmax(experts.gate(x), dim=-1).topk(2, dim=-1)
        assert difference(experts(x), experts.dense(x, weights, chosen)) <= TOLERANCE
    assert experts.num_active_weights == 2 * 3 * 16 * 10

"""What is launched when and waited for where: in a ladder every sum but the last has a module's compute to hide under.

One rank, whose group leaves NaN in a tensor until its handle was waited for: whoever reads too early says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.chain import Chain
from models.lm.config import LMConfig
from models.lm.model import LanguageModel
from models.lm.residual import parse_form
from models.parallel.group import Handle
from models.parallel.model import ShardedModel
from service.backends.parts import LanguageBackend, Parts
from service.backends.protocol import Array
from service.backends.sharded import sharded_backend
from service.backends.torch_arrays import module_part
from service.engine.executor import Batch, Executor, pad
from service.engine.plan import plan
from tests.parallel.served import CPU, ExactArrays, ExactShardedArrays, Uncounted, language

LAYERS, WIDTH = 4, 16
CONFIG = LMConfig(19, WIDTH, 24, LAYERS, 4, 2, 64)
LADDERS = ("ladder", "ladder(slot)", "ladder:1-2", "ladder(slot):0,3")
FULL = Chain.full(LAYERS)


@dataclass
class Poisoned:
    """A group of one whose sums are not there before they are waited for; notes every event.

    Events are ("launch", n), ("wait", n) and ("run", module); n counts all-reduces.
    """

    rank: int = 0
    size: int = 1
    events: list[tuple[str, object]] = field(default_factory=list)
    num_bytes: list[int] = field(default_factory=list)

    def all_reduce(self, tensor: Tensor) -> Handle:
        handle = _Poisoned(self, len(self.num_bytes), tensor, tensor.clone())
        tensor.fill_(torch.nan)
        self.events.append(("launch", handle.number))
        self.num_bytes.append(tensor.nbytes)
        return handle

    def all_gather(self, tensor: Tensor, dim: int) -> Tensor:
        return tensor

    def leave(self) -> None: ...

    def forget(self) -> None:
        self.events.clear()
        self.num_bytes.clear()


@dataclass
class _Poisoned:
    group: Poisoned
    number: int
    tensor: Tensor
    result: Tensor | None

    def wait(self) -> None:
        if self.result is not None:
            self.tensor.copy_(self.result)
            self.result = None
            self.group.events.append(("wait", self.number))


def build(form: str, config: LMConfig = CONFIG) -> tuple[LanguageModel, ShardedModel, Poisoned]:
    """The same weights in one process and over a group of one."""
    config = replace(config, residual=parse_form(form))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LanguageModel(config)
    group = Poisoned()
    shard = ShardedModel(config, group)
    shard.load_state_dict(model.state_dict())
    for layer in shard.layers:
        layer.self_attn.register_forward_pre_hook(lambda *_: group.events.append(("run", "attention")))
        layer.mlp.register_forward_pre_hook(lambda *_: group.events.append(("run", "mlp")))
    return model.double().eval(), shard.double().eval(), group


def backends(model: LanguageModel, shard: ShardedModel) -> tuple[LanguageBackend, LanguageBackend]:
    layers = tuple(module_part(layer) for layer in model.layers)
    parts = Parts(module_part(model.embed), layers, module_part(model.head))
    spec, arrays = language(model.config), ExactArrays(CPU, torch.float64)
    return (
        LanguageBackend(parts, spec, arrays, residual=model.config.residual),
        sharded_backend(shard, spec, arrays=ExactShardedArrays(shard.group, CPU, torch.float64)),
    )


def logits(backend: LanguageBackend, prompts: Sequence[Sequence[int]], chains: Sequence[Chain]) -> Array:
    token_ids, lengths = pad(prompts)
    batch = Batch({"token_ids": token_ids}, tuple(chains), np.zeros_like(lengths), lengths, lengths[:, None] - 1)
    return Executor(backend, Uncounted()).run(batch)["logits"]


FORMS = {form: build(form) for form in ("standard", "parallel", *LADDERS)}


def random_rows() -> st.SearchStrategy[list[tuple[Chain, int]]]:
    chain = st.lists(st.integers(0, LAYERS - 1), max_size=6).map(lambda layers: Chain(tuple(layers)))
    return st.lists(st.tuples(chain, st.integers(1, 6)), min_size=1, max_size=6)


@pytest.mark.parametrize("form", FORMS)
@given(rows=random_rows(), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_nothing_on_its_way_is_read_whatever_chains_are_in_a_batch(
    form: str, rows: list[tuple[Chain, int]], seed: int
) -> None:
    model, shard, _ = FORMS[form]
    random = Random(seed)
    prompts, chains = [random.choices(range(19), k=length) for _, length in rows], [chain for chain, _ in rows]
    wanted, got = (logits(backend, prompts, chains) for backend in backends(model, shard))
    assert (got == wanted).all()


def walk(form: str, chains: Sequence[Chain], num_tokens: int = 3, config: LMConfig = CONFIG) -> Poisoned:
    """The events of one pass, of rows of so many tokens."""
    model, shard, group = build(form, config) if config != CONFIG or form not in FORMS else FORMS[form]
    group.forget()
    logits(backends(model, shard)[1], [list(range(num_tokens))] * len(chains), chains)
    return group


def runs_between(events: Sequence[tuple[str, object]], number: int) -> list[object]:
    """The modules whose compute was launched between an all-reduce and the wait for it."""
    between = events[events.index(("launch", number)) : events.index(("wait", number))]
    return [what for kind, what in between if kind == "run"]


def test_in_a_ladder_all_but_the_last_hide_under_the_module_after() -> None:
    events = list(walk("ladder", [FULL]).events)
    hidden = [runs_between(events, number) for number in range(1, 2 * LAYERS + 1)]  # 0 is the embedding's
    assert hidden == [["mlp"], ["attention"]] * (LAYERS - 1) + [["mlp"], []]


def test_in_a_standard_model_none_hides() -> None:
    events = walk("standard", [FULL]).events
    assert [runs_between(events, number) for number in range(2 * LAYERS + 1)] == [[]] * (2 * LAYERS + 1)


def test_who_reads_decides_in_a_hybrid() -> None:
    events = walk("ladder:1-2", [FULL]).events
    hidden = [runs_between(events, number) for number in range(1, 2 * LAYERS + 1)]
    # Layer 0 waits for its own attention and leaves its MLP to layer 1; layer 3 waits for all of layer 2.
    assert hidden == [[], ["attention"], ["mlp"], ["attention"], ["mlp"], [], [], []]


def test_a_gap_exposes_what_was_pending_under_the_slot_rule_alone() -> None:
    chain = [Chain((0, 2, 3))]
    executed, slot = (list(walk(form, chain).events) for form in ("ladder", "ladder(slot)"))
    assert runs_between(executed, 2) == ["attention"]
    assert runs_between(slot, 2) == []
    assert runs_between(slot, 4) == ["attention"]


def test_sums_of_one_group_of_rows_hide_under_another_in_every_form() -> None:
    """Rows on their way to another layer are not waited for: an MLP's sum has the next group's attention to itself."""
    chains = [Chain((0, 1)), Chain((2, 3))]
    assert [group.layer for group in plan(tuple(chains))] == [0, 1, 2, 3]
    events = walk("standard", chains).events
    assert runs_between(events, 2) == []  # layer 1 reads what layer 0 adds
    assert runs_between(events, 4) == ["attention", "mlp", "attention", "mlp"]  # only the head reads layer 1's


@pytest.mark.parametrize("form", FORMS)
@given(rows=random_rows())
@settings(max_examples=15)
def test_two_are_in_flight_at_most_for_each_row(form: str, rows: list[tuple[Chain, int]]) -> None:
    chains = [chain for chain, _ in rows]
    events = walk(form, chains).events
    in_flight = most = 0
    for kind, _ in events:
        in_flight += {"launch": 1, "wait": -1}.get(kind, 0)
        most = max(most, in_flight)
    assert in_flight == 0  # every sum lands before the answer
    assert most <= 2 * len(set(chains))


@pytest.mark.parametrize(
    ("form", "per_visit"),
    [("standard", 2), ("parallel", 1), ("ladder", 2), ("ladder:1-2", 2), ("upper-bound", 0)],
)
@pytest.mark.parametrize("chains", [[FULL], [Chain((0, 3)), FULL, Chain((1, 1, 2))]], ids=["one", "several"])
def test_number_and_bytes_are_those_of_the_formula(form: str, per_visit: int, chains: list[Chain]) -> None:
    num_tokens = 3
    group, row_bytes = walk(form, chains, num_tokens), num_tokens * WIDTH * 8
    rows = [len(one.rows) for one in plan(tuple(chains))]
    assert group.num_bytes == [
        len(chains) * row_bytes,  # the embedding's
        *(count * row_bytes for count in rows for _ in range(per_visit)),
    ]


def test_norms_over_all_heads_add_two_numbers_a_token() -> None:
    config = replace(CONFIG, qk_norm="all")
    assert len(walk("standard", [FULL], config=config).num_bytes) == 2 * LAYERS + 1  # one rank has all heads


def test_blocks_side_by_side_are_summed_once() -> None:
    config = replace(CONFIG, is_parallel=True)
    assert len(walk("standard", [FULL], config=config).num_bytes) == LAYERS + 1
    normed_after = replace(config, norm_place="both")
    assert len(walk("standard", [FULL], config=normed_after).num_bytes) == 2 * LAYERS + 1


@pytest.mark.parametrize(("form", "sums"), [("desync-2x@2", 4), ("desync-4x@2", 2), ("desync-6x@2", 1)])
def test_desync_makes_streams_equal_every_so_many_visits(form: str, sums: int) -> None:
    config = replace(CONFIG, residual=parse_form(form))
    group = Poisoned(size=2)
    shard = ShardedModel(config, group).double().eval()
    stream, *shared = shard.embed(
        torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), torch.arange(0)
    )
    group.num_bytes.clear()
    nothing = shard.empty_cache(1)
    for layer in shard.layers:
        with torch.no_grad():
            stream, _, _ = layer(stream, *shared, nothing, nothing)
    assert len(group.num_bytes) == sums
    stream.whole(group)
    assert len(group.num_bytes) == -(-LAYERS // (config.residual.period // 2))  # the last visit's always

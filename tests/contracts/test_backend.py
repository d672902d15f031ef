"""The laws every backend keeps, for both kinds of model; numbered as in the design: 1 to 4 and 7."""

import asyncio
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from exporters.export import export_checkpoint
from models.artifact import Manifest, read_manifest
from models.chain import Chain
from models.checkpoint import load_checkpoint
from models.errors import BackendError, ChainError
from models.lm.model import LanguageModel
from service.backends.arrays import Arrays, HostArrays
from service.backends.eager import open_eager
from service.backends.fake import open_fake
from service.backends.onnx import open_onnx, open_session
from service.backends.open import BackendName, item_bytes, open_backend
from service.backends.parts import LanguageBackend, Part, Parts, TensorBackend
from service.backends.protocol import Array, Backend, Dtype, Ints, Rows
from service.backends.pt2 import open_pt2
from service.backends.torch_arrays import TorchArrays
from service.backends.torchscript import open_torchscript
from service.engine.executor import Batch, Executor, pad
from service.engine.forward import run_embeds
from service.engine.plan import plan
from service.engine.work import Embedded, EmbedWork
from service.parallel.messages import Facts
from service.parallel.probing import find_facts
from tests.service.parallel.loopback import remote

CPU = torch.device("cpu")
BACKENDS: tuple[BackendName, ...] = ("onnx", "torchscript", "eager", "pt2", "fake")
RUNTIMES = BACKENDS[:-1]
# Eager behind programs: what a rank is sent, and answers.
RANKS = "ranks"
# Small, so that few tokens fill several.
PAGE_SIZE = 4
# Visits by pages, -1 where there is none.
PageTable = Sequence[Sequence[int]]
# Largest difference of logits to the reference: float32 sums in another order; whole numbers are exact.
TOLERANCE = {"onnx": 5e-5, "torchscript": 5e-5, "eager": 5e-5, "pt2": 5e-5, "ranks": 5e-5, "fake": 0.0}
# Chains whose outputs all differ by more than this, so that a mistaken chain is never within the tolerance.
DISTINCT = 1e-2

FULL = Chain.full(3)
RANDOM = Random(0)
# Those that make one graph of a chain from its parts.
FUSING: tuple[BackendName, ...] = ("onnx", "torchscript", "pt2")
CHAINS = {
    "full": FULL,
    "skip": Chain((0, 2)),
    "one-layer": Chain((1,)),
    "repeat": Chain((0, 1, 1, 1, 2)),
    "reorder": Chain((2, 0, 1)),
    "backwards": Chain((2, 1, 0)),
    "twice": Chain((0, 1, 2, 0, 1, 2)),
    **{f"random-{n}": Chain(tuple(RANDOM.choices(range(3), k=n))) for n in (4, 5, 7)},
}
CHAIN_PARAMS = [pytest.param(chain, id=name) for name, chain in CHAINS.items()]
MIXED = tuple(CHAINS.values())
PROMPTS = tuple(tuple(RANDOM.choices(range(1, 17), k=length)) for length in (5, 1, 9, 3, 7, 2, 6, 12, 4, 8))
Reference = Callable[[Sequence[int], Chain], Array]


@dataclass
class Calls:
    """Counts what the executor reports."""

    rows: Counter[int] = field(default_factory=Counter)
    calls: Counter[int] = field(default_factory=Counter)
    tokens: int = 0

    def count_layer_call(self, layer: int, rows: int, tokens: int) -> None:
        self.rows[layer] += rows
        self.calls[layer] += 1
        self.tokens += tokens


@dataclass(frozen=True, eq=False)
class Opened:
    """One model on one runtime, its parts opened once."""

    name: str
    directory: Path
    manifest: Manifest
    parts: Parts

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.name]

    def arrays(self) -> Arrays:
        return HostArrays() if self.name in ("onnx", "fake") else TorchArrays(CPU)

    def language(self, num_pages: int = 0, arrays: Arrays | None = None, parts: Parts | None = None) -> Backend:
        assert self.manifest.language is not None
        return self._led(
            LanguageBackend(parts or self.parts, self.manifest.language, arrays or self.arrays(), num_pages, PAGE_SIZE)
        )

    def tensor(self, parts: Parts | None = None) -> Backend:
        return self._led(TensorBackend(parts or self.parts, self.manifest.inputs, self.manifest.outputs, self.arrays()))

    def _led(self, backend: Backend) -> Backend:
        return remote(self.manifest, backend, self._facts())[0] if self.name == RANKS else backend

    @cache  # noqa: B019  # of few models
    def _facts(self) -> Facts:
        return find_facts(self.manifest, plain_backend(self))


def plain_backend(opened: Opened) -> Backend:
    """The model in this process, nothing cached."""
    manifest, parts = opened.manifest, opened.parts
    if manifest.language:
        return LanguageBackend(parts, manifest.language, opened.arrays())
    return TensorBackend(parts, manifest.inputs, manifest.outputs, opened.arrays())


def open_model(name: str, directory: Path) -> Opened:
    manifest = read_manifest(directory)
    if name == "onnx":
        parts = open_onnx(directory, manifest.forms["onnx"], "cpu", 1, fuses=True)
    elif name == "torchscript":
        parts = open_torchscript(directory, manifest.forms["torchscript"], CPU).parts
    elif name in ("eager", RANKS):
        parts = open_eager(directory, manifest.forms["safetensors"], CPU, None).parts
    elif name == "pt2":
        parts = open_pt2(directory, manifest.forms["pt2"], CPU).parts
    else:
        parts = open_fake(manifest)
    return Opened(name, directory, manifest, parts)


@pytest.fixture(scope="session")
def graphs(tiny_lm_checkpoint: Path, tiny_mlp_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny models as graphs of torch.export, which no other test needs."""
    repository = tmp_path_factory.mktemp("graphs")
    for checkpoint in (tiny_lm_checkpoint, tiny_mlp_checkpoint):
        export_checkpoint(checkpoint, repository, ("pt2",))
    return repository


Repositories = Callable[[str], Path]


@pytest.fixture(scope="session")
def repositories(request: pytest.FixtureRequest) -> Repositories:
    """Where the tiny models lie in the format of a backend."""
    return lambda name: request.getfixturevalue("graphs" if name == "pt2" else "tiny_repository")


@pytest.fixture(scope="module", params=[*BACKENDS, RANKS])
def lm(request: pytest.FixtureRequest, repositories: Repositories) -> Opened:
    return open_model(request.param, repositories(request.param) / "tinylm" / "1")


@pytest.fixture(scope="module", params=[*BACKENDS, RANKS])
def mlp(request: pytest.FixtureRequest, repositories: Repositories) -> Opened:
    return open_model(request.param, repositories(request.param) / "tinymlp" / "1")


@pytest.fixture(scope="module")
def lm_reference(lm: Opened, tiny_lm_checkpoint: Path) -> Reference:
    """Logits [S, V] of a plain loop without any cache: eager torch's, or the fake's own parts one by one."""
    model = load_checkpoint(tiny_lm_checkpoint)

    def eager(token_ids: Sequence[int], chain: Chain) -> Array:
        with torch.inference_mode():
            return model.along({"token_ids": torch.tensor([token_ids])}, chain)[0].numpy()

    def fake(token_ids: Sequence[int], chain: Chain) -> Array:
        start = np.zeros(1, np.int64)
        hidden, *shared = lm.parts.embed(np.asarray([token_ids]), start, start[:0])
        nothing = np.zeros((1, 2, 0, 8), np.float32)
        for layer in chain.layers:
            hidden, _, _ = lm.parts.layers[layer](hidden, *shared, nothing, nothing)
        return np.asarray(lm.parts.head(hidden)[0][0])

    return fake if lm.name == "fake" else eager


@pytest.fixture(scope="module")
def mlp_reference(mlp: Opened, tiny_mlp_checkpoint: Path) -> Callable[[Array, Chain], Array]:
    """Outputs [B, C] of a plain loop."""
    model = load_checkpoint(tiny_mlp_checkpoint)

    def eager(features: Array, chain: Chain) -> Array:
        with torch.inference_mode():
            return model.along({"features": torch.from_numpy(features)}, chain).numpy()

    def fake(features: Array, chain: Chain) -> Array:
        carry = mlp.parts.embed(features)
        for layer in chain.layers:
            carry = mlp.parts.layers[layer](*carry)
        return np.asarray(mlp.parts.head(*carry)[0])

    return fake if mlp.name == "fake" else eager


def run(backend: Backend, batch: Batch) -> Array:
    """The one output of a batch."""
    (output,) = Executor(backend, Calls()).run(batch).values()
    return output


def text_batch(prompts: Sequence[Sequence[int]], chains: Sequence[Chain]) -> Batch:
    """Every token of every prompt, nothing cached; logits of all tokens."""
    token_ids, lengths = pad(prompts)
    every = np.minimum(np.arange(token_ids.shape[1])[None, :], lengths[:, None] - 1)
    return Batch({"token_ids": token_ids}, tuple(chains), np.zeros_like(lengths), lengths, every)


def step(
    backend: Backend,
    sequences: Sequence[Sequence[int]],
    num_cached: Sequence[int],
    chains: Sequence[Chain],
    tables: Sequence[PageTable],
) -> Array:
    """Last logits [B, V] of sequences of which the first tokens are in their pages; the rest is put there."""
    token_ids, lengths = pad([ids[cached:] for ids, cached in zip(sequences, num_cached, strict=True)])
    starts = np.asarray(num_cached, dtype=np.int64)
    batch = Batch({"token_ids": token_ids}, tuple(chains), starts, lengths, lengths[:, None] - 1, stacked(tables))
    return run(backend, batch)[:, 0]


def stacked(tables: Sequence[PageTable]) -> Ints:
    """Pages [B, longest chain, N], -1 where there is none."""
    columns = max(len(pages) for table in tables for pages in table)
    made = np.full((len(tables), max(map(len, tables)), columns), -1, np.int64)
    for row, table in enumerate(tables):
        for visit, pages in enumerate(table):
            made[row, visit, : len(pages)] = pages
    return made


# Columns of the longest sequence of these tests.
NUM_COLUMNS = 6
NUM_PAGES = NUM_COLUMNS * sum(map(len, MIXED))


def scattered_pages(chains: Sequence[Chain], seed: int = 0) -> list[PageTable]:
    """Pages for every visit of every chain, in no order."""
    numbers = list(range(NUM_COLUMNS * sum(map(len, chains))))
    Random(seed).shuffle(numbers)
    return [[[numbers.pop() for _ in range(NUM_COLUMNS)] for _ in chain.layers] for chain in chains]


def difference(a: Array, b: Array) -> float:
    assert a.shape == b.shape
    return float(np.abs(np.asarray(a, np.float64) - b).max())  # NaN, which no bound admits, if either holds one


def assert_same_answer(got: Array, wanted: Array, tolerance: float) -> None:
    assert difference(got, wanted) <= tolerance
    assert (got.argmax(-1) == wanted.argmax(-1)).all()


def features(rows: int) -> Array:
    return np.random.default_rng(0).uniform(0.0, 9.0, (rows, 6)).astype(np.float32)


def test_chains_of_these_tests_are_told_apart(tiny_lm_checkpoint: Path, tiny_mlp_checkpoint: Path) -> None:
    lm, mlp = load_checkpoint(tiny_lm_checkpoint), load_checkpoint(tiny_mlp_checkpoint)
    with torch.inference_mode():
        logits = [lm.along({"token_ids": torch.tensor([PROMPTS[0]])}, chain)[0, -1].numpy() for chain in MIXED]
        classes = [mlp.along({"features": torch.from_numpy(features(1))}, chain)[0].numpy() for chain in MIXED]
    assert min(difference(a, b) for a, b in combinations(logits, 2)) > DISTINCT
    assert min(difference(a, b) for a, b in combinations(classes, 2)) > DISTINCT
    assert len({int(row.argmax()) for row in logits}) > 1


# Law 1: the full chain through the parts is the whole model of the same runtime, to the last bit.


def whole_part(name: BackendName, directory: Path) -> Part:
    """The whole graph of one runtime as a callable over numpy arrays."""
    manifest = read_manifest(directory)
    if name == "onnx":
        session = open_session(directory / str(manifest.forms["onnx"].whole), "cpu", 1)
        names = [entry.name for entry in session.get_inputs()]
        return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))
    form = manifest.forms["torchscript"]
    only_whole = form.model_copy(update={"embed": None, "layers": (), "head": None})
    parts = open_torchscript(directory, only_whole, CPU).parts
    return lambda *arrays: [tensor.numpy() for tensor in parts.head(*map(torch.from_numpy, arrays))]


@pytest.mark.parametrize("name", ["onnx", "torchscript"])
def test_full_chain_of_a_language_model_is_its_whole_graph(name: BackendName, tiny_repository: Path) -> None:
    opened = open_model(name, tiny_repository / "tinylm" / "1")
    whole = whole_part(name, opened.directory)
    token_ids, starts = np.asarray([PROMPTS[2], PROMPTS[2][::-1]]), np.zeros(2, np.int64)
    nothing = np.zeros((3, 2, 2, 0, 8), np.float32)
    logits, keys, values = whole(token_ids, starts, nothing, nothing)
    backend, tables = opened.language(NUM_PAGES), scattered_pages((FULL, FULL))
    for _ in range(2):  # TorchScript optimises after it has seen inputs
        assert difference(run(backend, text_batch(token_ids.tolist(), (FULL, FULL))), logits) == 0.0
    # A step further, rows unevenly cached.
    sequences = [[*PROMPTS[2], 3], [*PROMPTS[2][::-1][:4], 8]]
    step(backend, [ids[:-1] for ids in sequences], (0, 0), (FULL, FULL), tables)
    past = [np.pad(array, [(0, 0)] * 3 + [(0, 3), (0, 0)]) for array in (keys, values)]  # 9 tokens in whole pages: 12
    decoded, _, _ = whole(np.asarray([[3], [8]]), np.asarray([9, 4]), *past)
    assert difference(step(backend, sequences, (9, 4), (FULL, FULL), tables), decoded[:, 0]) == 0.0


@pytest.mark.parametrize("name", ["onnx", "torchscript"])
def test_full_chain_of_a_tensor_model_is_its_whole_graph(name: BackendName, tiny_repository: Path) -> None:
    opened = open_model(name, tiny_repository / "tinymlp" / "1")
    wanted = whole_part(name, opened.directory)(features(5))[0]
    for backend in (opened.tensor(), fused(opened, FULL)):
        for _ in range(2):
            assert difference(run(backend, Batch({"features": features(5)}, (FULL,) * 5)), wanted) == 0.0


# Chains fused into one graph each.


def fused(opened: Opened, *chains: Chain) -> TensorBackend:
    """A backend that has a graph for each of the chains."""
    backend = TensorBackend(opened.parts, opened.manifest.inputs, opened.manifest.outputs, opened.arrays(), len(chains))
    assert backend.fused
    for chain in chains:
        backend.fused.add(chain.layers)
    return backend


@pytest.mark.parametrize("name", FUSING)
def test_fused_chain_gives_what_its_layers_give(name: BackendName, repositories: Repositories) -> None:
    opened = open_model(name, repositories(name) / "tinymlp" / "1")
    by_layers, backend = opened.tensor(), fused(opened, *MIXED)
    for chain in MIXED:
        graph = backend.fused and backend.fused.get(chain.layers)
        assert graph is not None
        for count in (1, 5, 2):
            (got,) = graph({"features": features(count)}).values()
            wanted = run(by_layers, Batch({"features": features(count)}, (chain,) * count))
            assert difference(got, wanted) <= opened.tolerance


@pytest.mark.parametrize("name", FUSING)
def test_one_graph_is_run_where_every_row_takes_a_fused_chain(name: BackendName, repositories: Repositories) -> None:
    opened = open_model(name, repositories(name) / "tinymlp" / "1")
    executed, reported, looped = Calls(), Calls(), Chain((0, 2, 2))
    executor = Executor(fused(replace(opened, parts=counted(opened.parts, executed)), FULL, looped), reported)
    for chain in (FULL, looped):
        reported.rows.clear()
        executor.run(Batch({"features": features(5)}, (chain,) * 5))
        assert executed.rows == Counter()
        assert reported.rows == Counter({layer: 5 * count for layer, count in Counter(chain.layers).items()})
    mixed = executor.run(Batch({"features": features(5)}, (FULL,) * 4 + (looped,)))
    assert executed.rows == {0: 5, 1: 4, 2: 6}
    alone = executor.run(Batch({"features": features(5)}, (FULL,) * 5))
    assert difference(mixed["logits"][:4], alone["logits"][:4]) <= opened.tolerance


@pytest.mark.parametrize("name", FUSING)
def test_fused_chains_outlive_the_folder_and_not_the_model(
    name: BackendName, repositories: Repositories, tmp_path: Path
) -> None:
    directory = tmp_path / "tinymlp"
    shutil.copytree(repositories(name) / "tinymlp" / "1", directory)
    backend = open_backend(read_manifest(directory), directory, name, num_threads=1)
    assert isinstance(backend, TensorBackend)
    assert backend.fused
    shutil.rmtree(directory)
    backend.fused.add((2, 1, 1))
    assert backend.fused.get((2, 1, 1)) is not None
    backend.close()
    assert backend.fused.get((2, 1, 1)) is None


def test_full_chain_of_eager_parts_is_the_plain_model(
    tiny_repository: Path, tiny_lm_checkpoint: Path, tiny_mlp_checkpoint: Path
) -> None:
    lm = open_model("eager", tiny_repository / "tinylm" / "1").language()
    mlp = open_model("eager", tiny_repository / "tinymlp" / "1").tensor()
    with torch.inference_mode():
        logits = load_checkpoint(tiny_lm_checkpoint)(torch.tensor([PROMPTS[2]])).numpy()
        classes = load_checkpoint(tiny_mlp_checkpoint)(torch.from_numpy(features(5))).numpy()
    assert difference(run(lm, text_batch([PROMPTS[2]], (FULL,))), logits) == 0.0
    assert difference(run(mlp, Batch({"features": features(5)}, (FULL,) * 5)), classes) == 0.0


# Law 2: any chain is a plain loop over its layers.


@pytest.mark.parametrize("chain", CHAIN_PARAMS)
def test_language_chain_is_a_plain_loop(chain: Chain, lm: Opened, lm_reference: Reference) -> None:
    for prompt in PROMPTS[:3]:
        assert_same_answer(
            run(lm.language(), text_batch([prompt], (chain,)))[0], lm_reference(prompt, chain), lm.tolerance
        )


@pytest.mark.parametrize("chain", CHAIN_PARAMS)
def test_tensor_chain_is_a_plain_loop(
    chain: Chain, mlp: Opened, mlp_reference: Callable[[Array, Chain], Array]
) -> None:
    got = run(mlp.tensor(), Batch({"features": features(3)}, (chain,) * 3))
    assert_same_answer(got, mlp_reference(features(3), chain), mlp.tolerance)


# Embeddings: the mean over tokens of the residual stream after the last visit, of length 1.

EMBEDDING_TOLERANCE = 1e-5


def embed_works(prompts: Sequence[Sequence[int]], chains: Sequence[Chain]) -> list[EmbedWork]:
    loop = asyncio.new_event_loop()
    works = [
        EmbedWork(future=loop.create_future(), token_ids=tuple(ids), chain=chain)
        for ids, chain in zip(prompts, chains, strict=True)
    ]
    loop.close()
    return works


def embed(lm: Opened, prompts: Sequence[Sequence[int]], chains: Sequence[Chain]) -> Array:
    answers = run_embeds(Executor(lm.language(), Calls()), embed_works(prompts, chains))
    assert all(isinstance(one, Embedded) and one.vector.dtype == np.float32 for one in answers)
    return np.stack([one.vector for one in answers if isinstance(one, Embedded)])


def plain_embedding(model: LanguageModel, token_ids: Sequence[int], chain: Chain) -> Array:
    """A loop over layers in torch, nothing cached, one sequence at a time."""
    starts = torch.zeros(1, dtype=torch.int64)
    with torch.inference_mode():
        hidden, *shared = model.embed(torch.tensor([token_ids]), starts, starts[:0])
        nothing = model.empty_cache(1)
        for layer in chain.layers:
            hidden, _, _ = model.layers[layer](hidden, *shared, nothing, nothing)
        return torch.nn.functional.normalize(hidden[0].mean(dim=0), dim=0).numpy()


@pytest.mark.parametrize("lm", [*RUNTIMES, RANKS], indirect=True)
def test_embeddings_of_a_batch_are_those_of_a_plain_loop(lm: Opened, tiny_lm_checkpoint: Path) -> None:
    model = load_checkpoint(tiny_lm_checkpoint)
    assert isinstance(model, LanguageModel)
    wanted = np.stack([plain_embedding(model, ids, chain) for ids, chain in zip(PROMPTS, MIXED, strict=True)])
    assert min(difference(a, b) for a, b in combinations(wanted, 2)) > 100 * EMBEDDING_TOLERANCE
    together = embed(lm, PROMPTS, MIXED)
    assert difference(together, wanted) <= EMBEDDING_TOLERANCE
    assert np.linalg.norm(together, axis=1) == pytest.approx(1.0, abs=1e-6)
    alone = np.concatenate([embed(lm, [ids], [chain]) for ids, chain in zip(PROMPTS, MIXED, strict=True)])
    assert difference(alone, together) <= EMBEDDING_TOLERANCE


def test_stream_is_what_the_head_would_get(lm: Opened) -> None:
    backend, batch = lm.language(), text_batch(PROMPTS, MIXED)
    streams = Executor(backend, Calls()).stream(batch)
    assert streams.shape[:2] == batch.inputs["token_ids"].shape
    taken_in = lm.arrays().take_in(np.ascontiguousarray(streams))
    logits = lm.arrays().give_out(lm.parts.head(taken_in)[0])
    told = run(backend, batch)
    for row, ids in enumerate(PROMPTS):
        assert_same_answer(logits[row, : len(ids)], told[row, : len(ids)], lm.tolerance)


def test_embedding_that_overflows_is_refused_alone(lm: Opened) -> None:
    def broken(*arrays: Any) -> Sequence[Any]:
        hidden, *rest = lm.parts.layers[1](*arrays)
        return hidden * float("inf"), *rest

    parts = replace(lm.parts, layers=(lm.parts.layers[0], broken, lm.parts.layers[2]))
    works = embed_works(PROMPTS[:2], [Chain((0, 2)), FULL])
    with np.errstate(invalid="ignore"):
        good, bad = run_embeds(Executor(lm.language(parts=parts), Calls()), works)
    assert isinstance(good, Embedded)
    assert isinstance(bad, ChainError)


# Law 3: a row answers the same alone and among any neighbours.


def test_language_row_alone_equals_in_a_batch(lm: Opened) -> None:
    backend = lm.language()
    together = run(backend, text_batch(PROMPTS, MIXED))
    for row, (prompt, chain) in enumerate(zip(PROMPTS, MIXED, strict=True)):
        alone = run(backend, text_batch([prompt], (chain,)))[0]
        assert_same_answer(together[row, : len(prompt)], alone, lm.tolerance)


def test_tensor_row_alone_equals_in_a_batch(mlp: Opened) -> None:
    backend, rows = mlp.tensor(), features(len(MIXED))
    together = run(backend, Batch({"features": rows}, MIXED))
    for row, chain in enumerate(MIXED):
        alone = run(backend, Batch({"features": rows[row : row + 1]}, (chain,)))[0]
        assert_same_answer(together[row], alone, mlp.tolerance)


def test_same_texts_twice_give_the_same_bits(lm: Opened) -> None:
    assert_same_bits(lm.language(), text_batch(PROMPTS, MIXED))


def test_same_rows_twice_give_the_same_bits(mlp: Opened) -> None:
    assert_same_bits(mlp.tensor(), Batch({"features": features(len(MIXED))}, MIXED))


def assert_same_bits(backend: Backend, batch: Batch) -> None:
    run(backend, batch), run(backend, batch)  # TorchScript optimises after it has seen inputs
    assert difference(run(backend, batch), run(backend, batch)) == 0.0


# Rows can leave a batch and come together again.


def assert_rows_travel(backend: Backend, carry: Any, rows: Rows | None) -> None:
    """Rows selected, joined in another order and run are the rows of the batch; the carries they came from stay."""
    count = 4
    order = (2, 0, 3, 1)
    singles = [backend.select(carry, np.asarray([row])) for row in order]
    size = backend.num_bytes(singles[0])
    assert backend.num_bytes(backend.join(singles)) == count * size > 0
    picked = None if rows is None else Rows(rows.starts[list(order)], rows.lengths[list(order)])
    tokens = None if rows is None else rows.lengths[:, None] - 1
    (wanted,) = backend.head(backend.layer(1, carry, rows), tokens).values()
    for _ in range(2):  # twice, so that a carry changed by the first pass shows
        (got,) = backend.head(
            backend.layer(1, backend.join(singles), picked), None if tokens is None else tokens[list(order)]
        ).values()
        assert difference(got, wanted[list(order)]) <= 5e-5


def test_rows_of_texts_travel(lm: Opened) -> None:
    backend, (token_ids, lengths) = lm.language(), pad(PROMPTS[:4])
    rows = Rows(np.zeros_like(lengths), lengths)
    assert_rows_travel(backend, backend.embed({"token_ids": token_ids}, rows), rows)


def test_rows_of_tensors_travel(mlp: Opened) -> None:
    backend = mlp.tensor()
    assert_rows_travel(backend, backend.embed({"features": features(4)}), None)


def test_merging_rows_leaves_the_others_alone(lm: Opened) -> None:
    backend, (token_ids, lengths) = lm.language(), pad(PROMPTS[:4])
    rows, tokens = Rows(np.zeros_like(lengths), lengths), lengths[:, None] - 1
    carry = backend.embed({"token_ids": token_ids}, rows)
    before = backend.head(carry, tokens)["logits"].copy()
    part = backend.layer(0, backend.select(carry, np.asarray([1, 3])), Rows(rows.starts[[1, 3]], rows.lengths[[1, 3]]))
    changed = backend.head(part, tokens[[1, 3]])["logits"].copy()
    after = backend.head(backend.merge(carry, np.asarray([1, 3]), part), tokens)["logits"]
    assert difference(after[[0, 2]], before[[0, 2]]) == 0.0
    assert difference(after[[1, 3]], changed) <= lm.tolerance
    assert difference(after[[1, 3]], before[[1, 3]]) > DISTINCT


# Law 4: decoding from pages is recomputing.


def assert_decoding_recomputes(
    backend: Backend, reference: Reference, tolerance: float, tables: Sequence[PageTable], seed: int = 0
) -> None:
    """Continue ragged prompts along mixed chains by given tokens; every step must be what recomputation gives."""
    rng = Random(seed)
    sequences = [list(prompt) for prompt in PROMPTS]
    num_cached = [0] * len(sequences)
    for _ in range(6):
        logits = step(backend, sequences, num_cached, MIXED, tables)
        for row, (sequence, chain) in enumerate(zip(sequences, MIXED, strict=True)):
            assert_same_answer(logits[row], reference(sequence, chain)[-1], tolerance)
        num_cached = [len(sequence) for sequence in sequences]
        for sequence in sequences:
            sequence.extend(rng.choices(range(17), k=rng.randint(1, 2)))


def test_decoding_from_pages_is_recomputing(lm: Opened, lm_reference: Reference) -> None:
    backend = lm.language(NUM_PAGES)
    assert_decoding_recomputes(backend, lm_reference, lm.tolerance, scattered_pages(MIXED))


def test_pages_can_be_reused_by_other_sequences(lm: Opened, lm_reference: Reference) -> None:
    backend = lm.language(NUM_PAGES)
    for seed in range(2):
        assert_decoding_recomputes(backend, lm_reference, lm.tolerance, scattered_pages(MIXED, seed), seed)


@pytest.mark.parametrize("left", [np.nan, np.inf, -np.inf])
def test_what_a_sequence_left_in_its_pages_does_not_reach_the_next(
    left: float, lm: Opened, lm_reference: Reference
) -> None:
    backend = lm.language(NUM_PAGES, arrays=Used(lm.arrays(), left))
    assert_decoding_recomputes(backend, lm_reference, lm.tolerance, scattered_pages(MIXED))


def test_newcomer_among_decoding_rows_sees_nothing_of_its_pages_past(lm: Opened, lm_reference: Reference) -> None:
    chains = (CHAINS["repeat"], CHAINS["reorder"])
    tables = scattered_pages(chains)
    backend = lm.language(NUM_PAGES, arrays=Used(lm.arrays(), np.nan))
    old, new = [1, 2, 3, 4, 5, 6], [7, 8]
    step(backend, [old], (0,), chains[:1], tables[:1])
    for _ in range(2):
        num_cached = (len(old), 0 if len(new) == 2 else len(new) - 1)
        old.append(9)
        logits = step(backend, [old, new], num_cached, chains, tables)
        assert_same_answer(logits[0], lm_reference(old, chains[0])[-1], lm.tolerance)
        assert_same_answer(logits[1], lm_reference(new, chains[1])[-1], lm.tolerance)
        new.append(3)


def test_pages_are_shared_by_visits_whose_tokens_and_layers_so_far_are_equal(
    lm: Opened, lm_reference: Reference
) -> None:
    chains = (Chain((0, 1, 2)), Chain((0, 1, 0, 2)))
    first, second = scattered_pages(chains)
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]  # two full pages and a bit
    backend = lm.language(NUM_PAGES)
    step(backend, [text], (0,), chains[:1], [first])
    shared = [[*mine[:2], *own[2:]] for mine, own in zip(first[:2], second[:2], strict=True)] + list(second[2:])
    read_only = [[-1, -1, *pages[2:]] if visit < 2 else pages for visit, pages in enumerate(shared)]
    other = [*text[:8], 11, 12]
    logits = step(backend, [other], (0,), chains[1:], [read_only])  # must not write what others read
    assert_same_answer(logits[0], lm_reference(other, chains[1])[-1], lm.tolerance)
    for _ in range(3):
        text.append(13)
        other.append(14)
        logits = step(backend, [text, other], (len(text) - 1, len(other) - 1), chains, [first, shared])
        assert_same_answer(logits[0], lm_reference(text, chains[0])[-1], lm.tolerance)
        assert_same_answer(logits[1], lm_reference(other, chains[1])[-1], lm.tolerance)


def test_reading_can_begin_behind_pages_that_were_found(lm: Opened, lm_reference: Reference) -> None:
    backend, (first, second) = lm.language(NUM_PAGES), scattered_pages((FULL, FULL))
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    step(backend, [text], (0,), (FULL,), [first])
    found = [[*theirs[:2], *own[2:]] for theirs, own in zip(first, second, strict=True)]
    other = [*text[:8], 10, 11, 12]
    logits = step(
        backend, [other, [4]], (8, 0), (FULL, FULL), [found, [[p] for p in (second[0][0], second[1][0], second[2][0])]]
    )
    assert_same_answer(logits[0], lm_reference(other, FULL)[-1], lm.tolerance)
    assert_same_answer(logits[1], lm_reference([4], FULL)[-1], lm.tolerance)


def test_row_that_overflows_hurts_neither_its_neighbours_nor_the_next(lm: Opened, lm_reference: Reference) -> None:
    overflows = True

    def overflowing(*arrays: Any) -> Sequence[Any]:
        outputs = [array + 0 for array in lm.parts.layers[1](*arrays)]
        for array in outputs:
            array[0] = np.nan if overflows else array[0]
        return outputs

    layers = (lm.parts.layers[0], overflowing, lm.parts.layers[2])
    backend = lm.language(NUM_PAGES, parts=replace(lm.parts, layers=layers))
    chains, tables = (FULL, FULL), scattered_pages((FULL, FULL))
    first, second = [1, 2, 3], [4, 5, 6, 7]
    logits = step(backend, [first, second], (0, 0), chains, tables)
    assert np.isnan(logits[0]).all()
    assert_same_answer(logits[1], lm_reference(second, FULL)[-1], lm.tolerance)
    overflows, third = False, [7]
    for num_cached in (0, 1):
        second.append(8)
        logits = step(backend, [third, second], (num_cached, len(second) - 1), chains, tables)
        assert_same_answer(logits[0], lm_reference(third, FULL)[-1], lm.tolerance)
        assert_same_answer(logits[1], lm_reference(second, FULL)[-1], lm.tolerance)
        third.append(9)


@dataclass(frozen=True)
class Used:
    """Arrays whose fresh memory holds what somebody left there."""

    arrays: Arrays
    left: float

    def zeros(self, shape: tuple[int, ...]) -> Any:
        return self.arrays.zeros(shape) + self.left

    def take_in(self, array: Array) -> Any:
        return self.arrays.take_in(array)

    def give_out(self, array: Any) -> Array:
        return self.arrays.give_out(array)

    def take(self, array: Any, places: Ints, into: Any) -> None:
        self.arrays.take(array, places, into)

    def join(self, arrays: Sequence[Any]) -> Any:
        return self.arrays.join(arrays)


# Law 7: the layers reported are the layers executed.


def counted(parts: Parts, calls: Calls) -> Parts:
    """The parts, each layer counting the rows that go through it."""

    def counting(index: int, layer: Part) -> Part:
        def call(hidden: Any, *others: Any) -> Sequence[Any]:
            calls.count_layer_call(index, len(hidden), 0)
            return layer(hidden, *others)

        return call

    return replace(parts, layers=tuple(counting(index, layer) for index, layer in enumerate(parts.layers)))


def test_layers_reported_are_layers_executed_by_texts(lm: Opened) -> None:
    executed = Calls()
    backend = lm.language(parts=counted(lm.parts, executed))
    assert_reported(backend, text_batch(PROMPTS, MIXED), [len(prompt) for prompt in PROMPTS], executed)


def test_layers_reported_are_layers_executed_by_rows(mlp: Opened) -> None:
    executed = Calls()
    backend = mlp.tensor(parts=counted(mlp.parts, executed))
    assert_reported(backend, Batch({"features": features(len(MIXED))}, MIXED), [1] * len(MIXED), executed)


def assert_reported(backend: Backend, batch: Batch, tokens: Sequence[int], executed: Calls) -> None:
    reported = Calls()
    Executor(backend, reported).run(batch)
    assert reported.rows == executed.rows == Counter(layer for chain in MIXED for layer in chain.layers)
    assert reported.calls == executed.calls == Counter(group.layer for group in plan(MIXED))
    assert reported.tokens == sum(len(chain) * count for chain, count in zip(MIXED, tokens, strict=True))


# Opening.


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("model", ["tinylm", "tinymlp"])
def test_backend_says_what_it_holds(name: BackendName, model: str, repositories: Repositories) -> None:
    directory = repositories(name) / model / "1"
    backend = open_backend(read_manifest(directory), directory, name, num_pages=4, page_size=8)
    assert backend.num_layers == 3
    assert backend.num_pages == (4 if model == "tinylm" else 0)
    assert model == "tinymlp" or backend.page_size == 8
    backend.close()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("model", ["tinylm", "tinymlp"])
def test_half_precision_is_the_same_model_less_exactly(model: str, dtype: Dtype, tiny_repository: Path) -> None:
    """Through pages and in a batch, the answers are those of float32, as far as the precision goes."""
    directory = tiny_repository / model / "1"
    manifest = read_manifest(directory)
    exact, half = (
        open_backend(manifest, directory, "eager", num_pages=NUM_PAGES, page_size=PAGE_SIZE, dtype=one)
        for one in ("float32", dtype)
    )
    if model == "tinymlp":
        batch = Batch({"features": features(len(MIXED))}, MIXED)
        wanted, got = run(exact, batch), run(half, batch)
    else:
        tables = scattered_pages(MIXED)
        first = [prompt[: len(prompt) // 2] for prompt in PROMPTS]
        for backend in (exact, half):
            step(backend, first, [0] * len(first), MIXED, tables)
        cached = [len(prompt) for prompt in first]
        wanted, got = (step(backend, PROMPTS, cached, MIXED, tables) for backend in (exact, half))
    assert got.dtype == np.float32
    spread = float(np.asarray(wanted, np.float64).std())
    assert 0 < difference(got, wanted) <= 0.25 * spread
    assert item_bytes(manifest, "eager", dtype) == 2
    assert item_bytes(manifest, "onnx", dtype) == item_bytes(manifest, "eager", "auto") == 4


@pytest.mark.parametrize("name", RUNTIMES)
def test_device_is_obtained_or_refused(name: BackendName, repositories: Repositories) -> None:
    directory = repositories(name) / "tinymlp" / "1"
    found = "CUDAExecutionProvider" in ort.get_available_providers() if name == "onnx" else torch.cuda.is_available()
    with nullcontext() if found else pytest.raises(BackendError, match=r"(?i)cuda.*device cpu"):
        open_backend(read_manifest(directory), directory, name, device="cuda")


@pytest.mark.parametrize("damage", ["garbage", "cut", "gone"])
@pytest.mark.parametrize("model", ["tinylm", "tinymlp"])
@pytest.mark.parametrize("name", RUNTIMES)
def test_damaged_file_is_refused(
    name: BackendName, model: str, damage: str, repositories: Repositories, tmp_path: Path
) -> None:
    directory = shutil.copytree(repositories(name) / model / "1", tmp_path / "1")
    manifest = read_manifest(directory)
    form = manifest.forms["safetensors" if name == "eager" else name]  # type: ignore[index]
    path = directory / (form.layers[1] if form.layers else str(form.whole))
    if damage == "garbage":
        path.write_bytes(b"\x00garbage" * 100)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.unlink()
    with pytest.raises(BackendError, match=path.name):
        open_backend(manifest, directory, name)

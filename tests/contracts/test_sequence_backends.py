"""The laws of every backend for recurrent models: whole, in passes of any size, in sessions, in batches: the same."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import combinations
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from exporters.export import export_checkpoint
from models import catalogue
from models.artifact import Manifest, SequenceSpec, TensorSpec, read_manifest
from models.chain import Chain
from models.checkpoint import load_checkpoint
from models.errors import GoneError
from models.layered import SequenceStack
from models.recurrent.gla import GLA, GLAConfig
from service import bind, load
from service.backends.onnx import open_session
from service.backends.open import BackendName, open_backend
from service.backends.parts import Parts
from service.backends.protocol import Array
from service.backends.sequences import SequenceBackend, state_bytes
from service.backends.torch_arrays import TorchArrays
from service.backends.torchscript import open_torchscript
from service.engine.engine import EngineLimits
from service.engine.executor import Batch, Executor
from service.engine.prefix import PrefixCache
from service.engine.queue import Limits, QueueLimits
from service.engine.sequence import SequenceEngine, SequenceRead
from service.engine.sessions import SessionAsked, SessionLimits, Sessions
from service.engine.shared import SharedSample
from service.metrics import Metrics, ModelMetrics

# As of the other kinds: float32 sums in another order; whole numbers are exact.
TOLERANCE = {"onnx": 5e-5, "torchscript": 5e-5, "eager": 5e-5, "fake": 0.0}
# ONNX with every chain of these tests fused into one graph beforehand.
FUSED = "onnx, fused"
DISTINCT = 5e-3
MAX_CHUNK = 8
CHAINS = tuple(map(Chain, ((0, 1, 2), (0, 2), (1,), (0, 1, 1, 1, 2), (2, 0, 1), (2, 1, 0), (0, 1, 2, 0, 1, 2))))
LENGTHS = (5, 1, 19, 8, 16, 40, 5)
LIMITS = EngineLimits(Limits(8, 256), QueueLimits(64, 64, 4096), max_chain_length=12, search_bytes=1 << 20)
BACKENDS: tuple[BackendName, ...] = ("onnx", "torchscript", "eager", "fake")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gated linear attention over two numbers a step, three layers, its answers different between chains."""
    checkpoint = tmp_path_factory.mktemp("checkpoints") / "fading"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GLAConfig(
            num_features=2, num_classes=4, hidden_size=16, num_heads=2, num_layers=3, input_scale=1.0,
            max_chunk=MAX_CHUNK, max_trained=16,
        )  # fmt: skip
        model = GLA(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(2.0)
    catalogue.save(model, checkpoint)
    exported = export_checkpoint(checkpoint, tmp_path_factory.mktemp("repository"))
    assert exported.refused == {}
    return exported.directory


@pytest.fixture(scope="module")
def sequences() -> list[Array]:
    random = np.random.default_rng(0)
    return [random.normal(size=(length, 2)).astype(np.float32) for length in LENGTHS]


class Opened:
    """One model on one runtime, and the plain loop."""

    def __init__(self, directory: Path, backend: BackendName, is_fused: bool = False) -> None:
        self.directory, self.name, self.is_fused = directory, backend, is_fused
        self.manifest: Manifest = read_manifest(directory)
        self.metrics = Metrics()
        model = load_checkpoint(directory / "safetensors")
        assert isinstance(model, SequenceStack)
        self.model = model

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.name]

    def backend(self) -> SequenceBackend:
        opened = open_backend(self.manifest, self.directory, self.name)
        assert isinstance(opened, SequenceBackend)
        assert (opened.fused is not None) == (self.name == "onnx")
        for chain in CHAINS if self.is_fused and opened.fused else ():
            opened.fused.add(chain.layers)
        return opened

    @asynccontextmanager
    async def engine(self, limits: EngineLimits = LIMITS) -> AsyncIterator[SequenceEngine]:
        sessions = Sessions(SessionLimits(60.0, 16, 16, 1 << 20))
        metrics = ModelMetrics(self.metrics, "m", "1")
        engine = SequenceEngine(self.manifest, self.backend(), limits, metrics, sessions)
        try:
            yield engine
        finally:
            await engine.close()

    def plain(self, steps: Array, chain: Chain) -> Array:
        """A loop over layers, one sequence at a time and one step after the other; the fake's by its own parts."""
        if self.name != "fake":
            with torch.inference_mode():
                return self.model.along({"steps": torch.from_numpy(steps)[None]}, chain)[0].numpy()
        backend = self.backend()
        states: list[list[None]] = [[None] * len(chain)]
        one = [_one_pass(backend, steps[None, place : place + 1], chain, states) for place in range(len(steps))]
        return np.concatenate(one)


def _one_pass(backend: SequenceBackend, steps: Array, chain: Chain, states: Sequence[list[None]]) -> Array:
    lengths = np.asarray([steps.shape[1]], np.int64)
    outputs = Executor(backend, _Uncounted()).run(
        Batch({"steps": steps}, (chain,), np.zeros(1, np.int64), lengths, states=states)
    )
    found: Array = outputs["logits"][0]
    return found


class _Uncounted:
    def count_layer_call(self, layer: int, rows: int, tokens: int) -> None:
        pass


@pytest.fixture(scope="module", params=[*BACKENDS, FUSED])
def opened(request: pytest.FixtureRequest, directory: Path) -> Opened:
    return Opened(directory, "onnx" if request.param == FUSED else request.param, request.param == FUSED)


def difference(a: Array, b: Array) -> float:
    assert a.shape == b.shape
    return float(np.abs(np.asarray(a, np.float64) - b).max())


def logits(done: SequenceRead) -> Array:
    return done.outputs["logits"]


def test_chains_of_these_tests_are_told_apart(opened: Opened, sequences: list[Array]) -> None:
    answers = [opened.plain(sequences[2], chain) for chain in CHAINS]
    assert min(difference(a, b) for a, b in combinations(answers, 2)) > DISTINCT


def test_any_chain_and_length_is_a_plain_loop_alone_and_in_a_batch(opened: Opened, sequences: list[Array]) -> None:
    async def run() -> tuple[list[SequenceRead], list[list[SequenceRead]]]:
        async with opened.engine() as engine:
            together = await engine.read([one.tolist() for one in sequences], [list(one.layers) for one in CHAINS])
            alone = [
                await engine.read([one.tolist()], [list(chain.layers)])
                for one, chain in zip(sequences, CHAINS, strict=True)
            ]
            return together, alone

    together, alone = asyncio.run(run())
    for steps, chain, one, (same,) in zip(sequences, CHAINS, together, alone, strict=True):
        wanted = opened.plain(steps, chain)
        assert difference(logits(one), wanted) <= opened.tolerance
        assert difference(logits(same), wanted) <= opened.tolerance
        assert (one.chain, one.num_steps) == (chain, len(steps))
        assert one.layers_executed == len(chain) * -(-len(steps) // MAX_CHUNK)
        assert one.layer_evaluations == len(chain) * len(steps)


def test_layers_reported_are_the_layers_that_ran(opened: Opened, sequences: list[Array]) -> None:
    async def run() -> list[SequenceRead]:
        async with opened.engine() as engine:
            return await engine.read([one.tolist() for one in sequences], [list(one.layers) for one in CHAINS])

    def counted() -> float:
        return opened.metrics.registry.get_sample_value("fathom_layer_evaluations_total", labels) or 0.0

    labels = {"model": "m", "version": "1"}
    before = counted()
    done = asyncio.run(run())
    assert counted() - before == sum(one.layer_evaluations for one in done)


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_session_equals_the_whole_sequence(chain: Chain, opened: Opened, sequences: list[Array]) -> None:
    """In pieces of any size, beside others on other chains that come and go."""
    steps, random = sequences[5], Random(0)

    async def run() -> Array:
        async with opened.engine() as engine:
            asked, read, answers = SessionAsked(None), 0, []
            while read < len(steps):
                count = random.choice((1, 2, 3, 11))
                others = asyncio.gather(
                    *(engine.read([sequences[i].tolist()], list(CHAINS[i].layers)) for i in (0, 2, 3))
                )
                piece = [steps[read : read + count].tolist()]
                done = await engine.go_on(piece, None if asked.id else list(chain.layers), asked)
                await others
                answers.append(logits(done))
                read += count
                (session,) = engine.sessions.of(engine.owner)
                asked = SessionAsked(session.id)
                assert session.num_steps == min(read, len(steps))
            return np.concatenate(answers)

    assert difference(asyncio.run(run()), opened.plain(steps, chain)) <= opened.tolerance


@pytest.mark.parametrize("name", ["onnx", "torchscript"])
def test_full_chain_is_the_whole_graph(name: BackendName, directory: Path, sequences: list[Array]) -> None:
    """The graph of one pass over all layers, its states stacked: to the last bit, a pass further too."""
    opened = Opened(directory, name)
    assert opened.manifest.sequence is not None
    whole = _whole(opened)
    shape = opened.manifest.sequence.state[0].shape[1:]
    state = np.zeros((3, 1, *shape), np.float32)
    backend, states = opened.backend(), [[None] * 3]
    for piece in (sequences[3][None], sequences[3][None, :3]):
        wanted, state = whole(np.ascontiguousarray(piece), state)
        got = _one_pass(backend, np.ascontiguousarray(piece), CHAINS[0], states)
        assert difference(got, wanted[0]) == 0.0


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_graph_of_a_chain_goes_on_from_the_states_of_its_layers_and_they_from_its(
    chain: Chain, directory: Path, sequences: list[Array]
) -> None:
    """Passes by either in turn, of rows that a batch left and rows that begin, kept states and others."""
    opened = Opened(directory, "onnx")
    steps = np.stack([sequences[5][start : start + 20] for start in (0, 10, 20)])
    by_layers, fused = opened.backend(), Opened(directory, "onnx", is_fused=True).backend()
    graph = fused.fused and fused.fused.get(chain.layers)
    assert graph is not None
    executor, states, answers = Executor(by_layers, _Uncounted()), [[None] * len(chain) for _ in steps], []
    for turn, piece in enumerate(np.split(steps, 5, axis=1)):
        if turn % 2:
            answers.append(graph({"steps": piece}, states, keep=turn == 1)["logits"])
            continue
        lengths = np.full(3, piece.shape[1], np.int64)
        batch = Batch({"steps": piece}, (chain,) * 3, np.zeros(3, np.int64), lengths, states=states, keep=turn == 2)
        answers.append(executor.run(batch)["logits"])
    for row, found in enumerate(np.concatenate(answers, axis=1)):
        assert difference(found, opened.plain(steps[row], chain)) <= opened.tolerance
    (whole,) = graph({"steps": steps}).values()  # from the first step on, in pieces
    assert difference(whole, np.concatenate(answers, axis=1)) <= opened.tolerance


def _whole(opened: Opened) -> Callable[..., Sequence[Array]]:
    if opened.name == "onnx":
        session = open_session(opened.directory / str(opened.manifest.forms["onnx"].whole), "cpu", 1)
        names = [entry.name for entry in session.get_inputs()]
        return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))
    form = opened.manifest.forms["torchscript"].model_copy(update={"embed": None, "layers": (), "head": None})
    parts = open_torchscript(opened.directory, form, torch.device("cpu")).parts
    return lambda *arrays: [tensor.numpy() for tensor in parts.head(*map(torch.from_numpy, arrays))]


def test_module_of_this_process_is_served_with_sessions(directory: Path, sequences: list[Array]) -> None:
    opened = Opened(directory, "eager")
    assert isinstance(opened.model, GLA)
    wanted = opened.plain(sequences[2], CHAINS[3])
    bound = bind(opened.model, {"steps": ("FP32", [-1, -1, 2])}, {"logits": ("FP32", [-1, -1, 4])})
    with load(bound) as model:
        begun = model.predict(sequences[2][None, :7], chain=CHAINS[3].layers, session="new")
        assert begun.session is not None
        rest = model.predict([sequences[2][7:].tolist()], session={"id": begun.session.id, "end": True})
        assert rest.session is not None
        assert (rest.session.steps, rest.session.expires_in_s) == (19, None)
        assert "19 steps" in rest.warnings[0]
        read = np.concatenate([begun.arrays["logits"][0], rest.arrays["logits"][0]])
        assert difference(read, wanted) <= opened.tolerance
        whole = model.predict(sequences[2][None], chain=CHAINS[3].layers)
        assert difference(whole.arrays["logits"][0], wanted) <= opened.tolerance
        with pytest.raises(GoneError, match="it was ended"):
            model.predict([[[0, 0]]], session=begun.session.id)
    with load(directory) as model:
        assert model.manifest.kind == "sequence"
        assert (
            difference(model.predict(sequences[2][None]).arrays["logits"][0], opened.plain(sequences[2], CHAINS[0]))
            <= opened.tolerance
        )


def test_search_gets_what_serving_gives(opened: Opened, sequences: list[Array]) -> None:
    """Every prefix over all steps, layer by layer, although passes are bounded."""

    async def run() -> list[Array]:
        async with opened.engine() as engine:
            sample = SharedSample({"steps": sequences[2][None]}, PrefixCache(1 << 20), len(sequences[2]))
            answer = await engine.explore(sample, CHAINS)
            assert answer.layer_evaluations < sum(map(len, CHAINS)) * len(sequences[2])
            return [one["logits"] for one in answer.outputs]

    for chain, found in zip(CHAINS, asyncio.run(run()), strict=True):
        assert difference(found, opened.plain(sequences[2], chain)) <= opened.tolerance


def test_states_that_are_views_of_the_stream_stay_what_they_were() -> None:
    """Rows of other chains write into the stream of a batch; what visits left before is not theirs."""

    def layer(hidden: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> Sequence[torch.Tensor]:
        made = hidden * 2 + before[:, None] + after[:, None]
        return made, hidden[:, -1], made[:, -1]

    shape = TensorSpec(name="x", datatype="FP32", shape=(-1, 1))
    spec = SequenceSpec(max_chunk=4, max_trained=4, state=(shape, shape))
    parts = Parts(lambda steps: (steps,), (layer, layer), lambda hidden: (hidden,))
    outputs = (TensorSpec(name="logits", datatype="FP32", shape=(-1, -1, 1)),)
    backend = SequenceBackend(parts, spec, outputs, TorchArrays(torch.device("cpu")))
    chains = (Chain((0, 1, 1)), Chain((1, 0)), Chain((0, 0, 1)))
    steps = np.arange(12, dtype=np.float32).reshape(3, 4, 1) + 1

    def walk(rows: Sequence[int]) -> Array:
        states = [[None] * len(chains[row]) for row in rows]
        many = Executor(backend, _Uncounted())
        zeros, ones = np.zeros(len(rows), np.int64), np.ones(len(rows), np.int64)
        found = [
            many.run(
                Batch(
                    {"steps": steps[list(rows), place : place + 1].copy()},
                    tuple(chains[row] for row in rows),
                    zeros,
                    ones,
                    states=states,
                )
            )["logits"]
            for place in range(4)
        ]
        return np.concatenate(found, axis=1)

    together = walk((0, 1, 2))
    for row in range(3):
        assert difference(together[row : row + 1], walk((row,))) == 0.0


def test_state_of_a_session_holds_nothing_of_its_neighbours(opened: Opened, sequences: list[Array]) -> None:
    async def run() -> int:
        async with opened.engine() as engine:
            pieces = [one[:1].tolist() for one in sequences]
            await asyncio.gather(
                *(engine.go_on([one], "full", SessionAsked(f"s{i}", starts=True)) for i, one in enumerate(pieces))
            )
            found = engine.sessions.of(engine.owner)
            assert len(found) == len(pieces)
            arrays = [array for one in found for state in one.states for array in state.arrays]
            assert {len(array) for array in arrays} == {1}
            if opened.name in ("onnx", "fake"):
                assert all(array.base is None for array in arrays)
            held = sum(int(array.nbytes) for array in arrays)
            assert held == sum(one.num_bytes for one in found)
            return held

    assert opened.manifest.sequence is not None
    assert asyncio.run(run()) == len(sequences) * 3 * state_bytes(opened.manifest.sequence)

"""A recurrent model: sequences in, an answer for each of their steps out; in one request, or over many of a session."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.artifact import Manifest, SequenceSpec, TensorSpec
from models.chain import Chain
from models.errors import ChainError, FullError, InputError
from service.backends.protocol import Array, Backend
from service.backends.sequences import state_bytes
from service.engine.engine import ChainValue, EngineLimits, new_future
from service.engine.sessions import Owner, Session, SessionAsked, Sessions
from service.engine.tensor import Inference, TensorEngine, read_inputs
from service.engine.terms import SessionTold, current_terms
from service.engine.work import SequenceWork, Tensors, Timing
from service.metrics import ModelMetrics


@dataclass(frozen=True, slots=True)
class SequenceRead:
    """What a model says of one sequence: outputs by name, [T, ...] each; and what it cost.

    num_before: steps that earlier requests of its session read.
    """

    outputs: dict[str, Array]
    chain: Chain
    num_passes: int
    timing: Timing
    num_before: int = 0

    @property
    def num_steps(self) -> int:
        return len(next(iter(self.outputs.values())))

    @property
    def num_steps_read(self) -> int:
        """All steps so far."""
        return self.num_before + self.num_steps

    @property
    def layers_executed(self) -> int:
        """Visits times passes; none of what was remembered."""
        return len(self.chain) * self.num_passes

    @property
    def layer_evaluations(self) -> int:
        """Visits times steps."""
        return len(self.chain) * self.num_steps if self.num_passes else 0


class SequenceEngine(TensorEngine):
    """Reads sequences in passes of at most so many steps, in batches with others on other chains."""

    def __init__(
        self, manifest: Manifest, backend: Backend, limits: EngineLimits, metrics: ModelMetrics, sessions: Sessions
    ) -> None:
        assert manifest.sequence is not None
        self.sequence: SequenceSpec = manifest.sequence
        self.sessions = sessions
        self.owner = Owner(manifest.name, manifest.version, metrics.observe_session_end)
        super().__init__(manifest, backend, limits, metrics)
        metrics.watch_sessions(
            lambda: len(sessions.of(self.owner)), lambda: sum(one.num_bytes for one in sessions.of(self.owner))
        )

    async def close(self) -> None:
        self.sessions.end_all(self.owner)
        await super().close()

    async def read(self, inputs: object, chain: ChainValue) -> list[SequenceRead]:
        """Read every sequence [T, ...] along its chain; their lengths may differ. Raises InputError or ChainError."""
        sequences = self.sequences(inputs)
        chains = self.affordable_chains(chain, len(sequences))
        return await self._read([self._work(*each) for each in zip(sequences, chains, strict=True)])

    async def go_on(self, inputs: object, chain: ChainValue | None, asked: SessionAsked) -> SequenceRead:
        """Read the next steps of a session, which is what its request is told; it keeps its chain, which None is.

        Whatever goes wrong leaves it as it was. Raises NotFoundError, GoneError, ConflictError and FullError, too.
        """
        sequences = self.sequences(inputs)
        if len(sequences) > 1:
            raise InputError(f"{len(sequences)} sequences came and a session reads one; send a request for each")
        session = self._session(chain, asked)
        try:
            work = self._work(sequences[0], session.chain, session)
            (done,) = await self._read([work], session.num_steps)
            self.sessions.keep(session, work.states, done.num_steps_read)
        finally:
            self.sessions.release(session)
        if asked.ends:
            self.sessions.end(session)
        if told := current_terms().told:
            told.session = SessionTold(session.id, session.num_steps, self.sessions.expires_in_s(session))
        return done

    async def infer(self, inputs: object, chain: ChainValue) -> Inference:
        """Outputs of every sequence. Raises InputError or ChainError, also if their lengths differ."""
        sequences = self.sequences(inputs)
        lengths = sorted({len(one) for one in sequences})
        if len(lengths) > 1:
            raise InputError(f"sequences of {lengths} steps came; send those of one length together, or use /predict")
        chains = self.affordable_chains(chain, len(sequences))
        outputs, timing = await self.forward({self._input.name: np.stack(sequences)}, chains)
        return Inference(outputs, chains, timing)

    async def forward(self, arrays: dict[str, Array], chains: tuple[Chain, ...]) -> tuple[dict[str, Array], Timing]:
        sequences = self.sequences(arrays)
        done = await self._read([self._work(*each) for each in zip(sequences, chains, strict=True)])
        outputs = {name: np.stack([one.outputs[name] for one in done]) for name in done[0].outputs}
        return outputs, done[-1].timing

    def sequences(self, inputs: object) -> list[Array]:
        """Sequences [T, ...] from a list of them, or by the input's name. Raises InputError naming the sequence."""
        is_ragged = isinstance(inputs, list) and len({_length(one) for one in inputs}) > 1
        if is_ragged:
            assert isinstance(inputs, list)
            found = [self._one(place, given) for place, given in enumerate(inputs)]
        else:
            _refuse_empty(inputs)
            found = list(next(iter(read_inputs(inputs, self.manifest.inputs).values())))
        for place, sequence in enumerate(found):
            self._check(place, sequence)
        return found

    @property
    def _input(self) -> TensorSpec:
        return self.manifest.inputs[0]

    def _one(self, place: int, given: object) -> Array:
        _refuse_empty([given], place)
        try:
            (read,) = read_inputs([given], self.manifest.inputs).values()
        except InputError as error:
            raise InputError(f"sequence {place}: {error}") from error
        return read[0]  # type: ignore[no-any-return]

    def _check(self, place: int, steps: Array) -> None:
        if not len(steps):
            raise _empty(place)
        size = self.sequence.vocab_size
        if size and (steps.min() < 0 or steps.max() >= size):
            wrong = int(steps[(steps < 0) | (steps >= size)][0])
            raise InputError(f"sequence {place} has the token {wrong}; the vocabulary has 0 to {size - 1}")

    def _session(self, chain: ChainValue | None, asked: SessionAsked) -> Session:
        client = current_terms().client
        if asked.starts or asked.id is None:
            (chosen,) = self.chains("full" if chain is None else chain, 1)
            num_bytes = len(chosen) * state_bytes(self.sequence)
            try:
                return self.sessions.begin(self.owner, client, asked.id, chosen, num_bytes)
            except FullError:
                self.metrics.observe_refused_session()
                raise
        session = self.sessions.resume(self.owner, client, asked.id)
        try:
            if chain is not None and self.chains(chain, 1)[0] != session.chain:
                raise ChainError(
                    f"session {session.id!r} was begun along chain {session.chain} and chain "
                    f"{self.chains(chain, 1)[0]} was asked for; leave it out, or begin another session"
                )
        except ChainError:
            self.sessions.release(session)
            raise
        return session

    def _work(self, steps: Array, chain: Chain, session: Session | None = None) -> SequenceWork:
        states = list(session.states) if session and session.states else [None] * len(chain)
        return SequenceWork(
            future=new_future(),
            steps=steps,
            chain=chain,
            max_chunk=self.sequence.max_chunk,
            states=states,
            keeps=session is not None,
        )

    async def _read(self, works: Sequence[SequenceWork], num_before: int = 0) -> list[SequenceRead]:
        self._warn([num_before + len(work.steps) for work in works])
        answers: list[Tensors] = await self.run(works)
        done = [
            SequenceRead(answer.outputs, work.chain, work.num_passes, answer.timing, num_before)
            for work, answer in zip(works, answers, strict=True)
        ]
        for one in done:
            if one.num_passes:
                self.metrics.observe_samples([one.chain], [one.num_passes], self.num_layers, one.timing)
        return done

    def _warn(self, lengths: Sequence[int]) -> None:
        longest, told = self.sequence.max_trained, current_terms().told
        if told is None:
            return
        told.warnings += [
            f"sequence {place} has {length} steps and the model was trained on at most {longest}; how well it answers "
            "beyond is not known"
            for place, length in enumerate(lengths)
            if length > longest
        ]


def _length(given: object) -> int:
    return len(given) if isinstance(given, Sequence) else 0


def _refuse_empty(inputs: object, first: int = 0) -> None:
    """Without steps a sequence has no shape that could be looked at."""
    if isinstance(inputs, list):
        for place, given in enumerate(inputs):
            if isinstance(given, list) and not given:
                raise _empty(first + place)


def _empty(place: int) -> InputError:
    return InputError(f"sequence {place} is empty; send at least one step")

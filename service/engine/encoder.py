"""A text encoder: texts, pairs of texts or token ids in; a vector, labels or tokens out, each along its own chain."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from models.artifact import EncoderSpec, Manifest
from models.chain import Chain
from models.encoders.tokenizer import EncoderTokenizer, Tokens
from models.errors import InputError, LengthError
from service.backends.protocol import Array, Backend
from service.engine.engine import ChainValue, Engine, EngineLimits, new_future
from service.engine.prefix import PrefixCache
from service.engine.sampling import log_softmax
from service.engine.shared import SharedSample, encoded_sample
from service.engine.work import EncodeWork, Tensors, Timing
from service.metrics import ModelMetrics

# A text, the two texts of a pair, token ids with the special ones, or what one of these became.
TextInput: TypeAlias = str | Sequence[str] | Sequence[int] | Tokens


@dataclass(frozen=True, slots=True)
class Reading:
    """What becomes of texts before they are read: cut if too long, and which of the model's prompts comes first."""

    truncates: bool = False
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a model says of one input, and what it cost.

    values: the embedding [E], the labels' scores [C], each token's labels' scores [S, C], or the vocabulary's
    probabilities at each mask [T, V]; float32.
    """

    values: Array
    tokens: Tokens
    chain: Chain
    layers_executed: int
    layers_full: int
    timing: Timing

    @property
    def num_tokens(self) -> int:
        return len(self.tokens.ids)

    @property
    def layer_evaluations(self) -> int:
        return self.layers_executed * self.num_tokens


class EncoderEngine(Engine):
    """Reads texts once, in batches with other texts on other chains."""

    def __init__(
        self,
        manifest: Manifest,
        backend: Backend,
        limits: EngineLimits,
        metrics: ModelMetrics,
        tokenizer: EncoderTokenizer,
    ) -> None:
        assert manifest.encoder is not None
        self.encoder: EncoderSpec = manifest.encoder
        self.tokenizer = tokenizer
        super().__init__(manifest, backend, limits, metrics)

    def tokens(self, given: TextInput, reading: Reading = Reading()) -> Tokens:
        """The tokens of one input. Raises InputError, or LengthError naming the limit of a text that is not cut."""
        if isinstance(given, Tokens):
            return given
        if isinstance(given, str):
            return self._read(given, None, reading)
        if len(given) == 2 and all(isinstance(one, str) for one in given):
            if self.encoder.task == "tokens":
                raise InputError(f"model {self.manifest.name!r} labels the tokens of one text; send no pair")
            return self._read(str(given[0]), str(given[1]), reading)
        return self._checked(given, reading)

    async def encode(
        self, inputs: Sequence[TextInput], chain: ChainValue, reading: Reading = Reading()
    ) -> list[Encoded]:
        """Read every input along its chain. Everything is checked before anything is queued."""
        chains = self.affordable_chains(chain, len(inputs))
        read = [self.tokens(one, reading) for one in inputs]
        works = [self.work(tokens, one) for tokens, one in zip(read, chains, strict=True)]
        answers: list[Tensors] = await self.run(works)
        return [self._encoded(*each) for each in zip(works, read, answers, strict=True)]

    async def outputs(self, tokens: Tokens, chain: Chain) -> Array:
        """What the head gives for one text, before any probabilities."""
        work = self.work(tokens, chain)
        (answer,) = await self.run([work])
        self._observe(work, answer)
        values: Array = next(iter(answer.outputs.values()))[0]
        return values

    def sample(self, tokens: Tokens, cache: PrefixCache, wants_influence: bool = False) -> SharedSample:
        """A text for searches, on which many chains run."""
        return encoded_sample(tokens.ids, self._types(tokens), cache, wants_influence)

    def work(self, tokens: Tokens, chain: Chain) -> EncodeWork:
        """The reading of one text, to be queued. Raises InputError if there is nothing to fill."""
        return EncodeWork(
            future=new_future(),
            token_ids=tokens.ids,
            token_types=self._types(tokens),
            places=self._masks(tokens) if self.encoder.task == "fill-mask" else None,
            is_per_token=self.encoder.task == "tokens",
            chain=chain,
        )

    def _read(self, text: str, pair: str | None, reading: Reading) -> Tokens:
        text = self._prompt(reading.prompt) + text
        if self.encoder.lowers_case:
            text, pair = text.lower(), pair and pair.lower()
        return self._nonempty(self.tokenizer.encode(text, pair, self.encoder.max_length, reading.truncates))

    def _types(self, tokens: Tokens) -> tuple[int, ...] | None:
        if not self.encoder.has_token_types:
            return None
        return tokens.types if self.encoder.tells_pairs else (0,) * len(tokens.types)

    def _prompt(self, name: str | None) -> str:
        prompts = self.encoder.prompts
        name = self.encoder.default_prompt if name is None else name
        if name is not None and name not in prompts:
            raise InputError(f"the model has no prompt {name!r}; it has {sorted(prompts)}, or leave it out")
        return "" if name is None else prompts[name]

    def _checked(self, token_ids: Sequence[object], reading: Reading) -> Tokens:
        vocabulary, longest = self.encoder.vocab_size, self.encoder.max_length
        if reading.prompt is not None:
            raise InputError("a prompt goes before texts; send a text, or leave the prompt out")
        ids: list[int] = []
        for place, token_id in enumerate(token_ids):
            if type(token_id) is not int or not 0 <= token_id < vocabulary:
                raise InputError(f"token {place} is {token_id!r}; the vocabulary has 0 to {vocabulary - 1}")
            ids.append(token_id)
        if len(ids) > longest and not reading.truncates:
            raise LengthError(f"{len(ids)} tokens do not fit; the model takes {longest}; send fewer, or say truncate")
        kept = tuple(ids[:longest])
        return self._nonempty(
            Tokens(kept, (0,) * len(kept), ((0, 0),) * len(kept), (False,) * len(kept), was_cut=len(ids) > longest)
        )

    @staticmethod
    def _nonempty(tokens: Tokens) -> Tokens:
        if not tokens.ids:
            raise InputError("the text is empty; send at least one token")
        return tokens

    def _masks(self, tokens: Tokens) -> tuple[int, ...]:
        mask = self.encoder.mask_token_id
        places = tuple(place for place, token_id in enumerate(tokens.ids) if token_id == mask)
        if not places:
            raise InputError(f"the text has no {self.tokenizer.token(mask or 0)!r} to fill; put one where a word lacks")
        return places

    def _encoded(self, work: EncodeWork, tokens: Tokens, answer: Tensors) -> Encoded:
        is_run = self._observe(work, answer)
        (values,) = answer.outputs.values()
        return Encoded(
            values=self.scored(values[0]),
            tokens=tokens,
            chain=work.chain,
            layers_executed=len(work.chain) * is_run,
            layers_full=self.num_layers,
            timing=answer.timing,
        )

    def _observe(self, work: EncodeWork, answer: Tensors) -> bool:
        """Count what ran; False for what was remembered."""
        if answer.timing.is_cached:
            return False
        self.metrics.observe_samples([work.chain], [1], self.num_layers, answer.timing)
        return True

    def scored(self, outputs: Array) -> Array:
        """Outputs as the task's answer: an embedding as it is, probabilities of what has them."""
        if self.encoder.task == "embed" or self.encoder.scores == "none":
            return outputs
        if self.encoder.scores == "sigmoid":
            return np.asarray(0.5 * (1.0 + np.tanh(0.5 * outputs)), np.float32)  # no overflow on either side
        return np.exp(log_softmax(outputs)).astype(np.float32)

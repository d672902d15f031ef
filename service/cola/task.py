"""What one search is asked and what it answers, as plain records. Knows no algorithm."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Literal, TypeAlias

from models.chain import Chain
from models.errors import InputError
from service.cola.evaluator import Answer
from service.cola.ledger import Found
from service.cola.mcts import MctsConfig
from service.cola.node import TreeNode
from service.cola.reward import Reward
from service.cola.space import Space

Stop: TypeAlias = Literal["first", "proof"]
StoppedBy: TypeAlias = Literal["simulations", "layer_evaluations", "seconds", "exhausted", "first", "proof"]


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of a search, whichever is met first; None is no limit. All above 0, else InputError.

    A limit is looked at between batches of leaves, so layer evaluations and seconds can be passed by one batch.
    The runs that certify the winner come after, outside the limits, and count in the statistics.
    stop: end before any limit. "first": when a chain has the full reward; with a reward that the full chain has by
    definition, when another one has. "proof": when in addition every shorter chain of the space was tried.
    """

    simulations: int | None = 200
    layer_evaluations: int | None = None
    seconds: float | None = None
    stop: Stop | None = None

    def __post_init__(self) -> None:
        limits = {name: getattr(self, name) for name in ("simulations", "layer_evaluations", "seconds")}
        if all(limit is None for limit in limits.values()):
            raise InputError(f"the budget has no limit; set at least one of {', '.join(limits)}")
        for name, limit in limits.items():
            if limit is not None and not (math.isfinite(limit) and limit > 0):
                raise InputError(f"budget {name} is {limit}; use a finite number above 0, or none for no limit")


@dataclass(frozen=True, slots=True)
class Task:
    """Everything the search of one sample depends on, except for the model.

    truth: the right answer, for a reward that aims at a wrong one. seed: as `derive_seed` makes it. leaf_batch: chains
    per evaluation, 1 or more; it is part of the result's identity. top_k: best chains to report, tree_nodes: nodes of
    the tree to report, 0 or more. Raises InputError if reward, target and truth do not go together.
    """

    num_layers: int
    space: Space
    reward: Reward
    target: Answer | None = None
    truth: Answer | None = None
    mcts: MctsConfig = field(default_factory=MctsConfig)
    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    leaf_batch: int = 8
    top_k: int = 0
    tree_nodes: int = 0

    def __post_init__(self) -> None:
        if self.leaf_batch < 1:
            raise InputError(f"leaf_batch is {self.leaf_batch}; use 1 or more")
        if self.reward.needs_target and self.target is None:
            raise InputError(f"reward {self.reward.name!r} has no target; send one, or use a reward without a label")
        if self.budget.stop and self.reward.ceiling is None:
            raise InputError(f"reward {self.reward.name!r} is graded and never complete; leave 'stop' out")
        if self.reward.name == "wrong_target":
            _check_wrong(self.target, self.truth)


def _check_wrong(target: Answer | None, truth: Answer | None) -> None:
    if truth is None:
        raise InputError("reward 'wrong_target' has no truth to differ from; send it as 'truth'")
    if target is not None and target.agrees_with(truth):
        raise InputError(f"target {target.text!r} is the truth; reward 'wrong_target' needs another")


@dataclass(frozen=True, slots=True)
class Spent:
    """What a search cost. Layer evaluations: one per layer and token; naive: had each chain run and decoded alone."""

    simulations: int
    layer_evaluations: int
    layer_evaluations_naive: int
    seconds: float

    @property
    def distinct_chains(self) -> int:
        """As many as simulations: no chain is proposed twice."""
        return self.simulations


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a search stands after a batch of leaves; nothing in it is certified yet."""

    best: Found
    pareto: tuple[Found, ...]
    stats: Spent


@dataclass(frozen=True, slots=True)
class Outcome:
    """A chain that was run alone, with its answer. certified: the answer is what the reward asks for."""

    chain: Chain
    reward: float
    answer: Answer
    certified: bool

    @property
    def length(self) -> int:
        """In visits."""
        return len(self.chain)


@dataclass(frozen=True, slots=True)
class Result:
    """What a search found. `best` is certified, or it is the full chain.

    oracle: the reward used the label. deterministic: the same task gives the same result; false if time cut it short.
    """

    full: Outcome
    best: Outcome
    pareto: tuple[Found, ...]
    stats: Spent
    stopped_by: StoppedBy
    oracle: bool
    deterministic: bool
    top: tuple[Found, ...] = ()
    tree: tuple[TreeNode, ...] = ()


def derive_seed(seed: int, text: str, space: Space, mcts: MctsConfig, reward: Reward) -> int:
    """The seed of one search, in 0..2^256-1: the same sample searched the same way draws the same numbers.

    Budget and leaf batch stay out: a larger budget continues the smaller one's search. The released code seeds every
    sample alike, and so does its walk.
    """
    if mcts.walk == "released":
        return seed
    identity = json.dumps([seed, text, space.name, asdict(space), asdict(mcts), reward.name])  # type: ignore[call-overload]
    return int.from_bytes(hashlib.sha256(identity.encode()).digest(), "big")

"""The training mixture as batches of token ids. A batch knows no model."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import ceil
from random import Random

import torch
from torch import Tensor

from training.arith.problems import FAMILIES, FAMILY, Problem, sample
from training.arith.tokenizer import END, IDS, PAD_ID

OVERHEAD = 4  # Tokens that a row costs beside its own, so that parts take equally long.
PROMPT_WEIGHT = 0.05


@dataclass(frozen=True, slots=True)
class Mixture:
    """What is trained when: `shares` of FAMILIES throughout, of each family more and more sizes.

    Training starts with the smallest `first_sizes` of each family, given as a share of all, and has grown to all of
    them after `growth_steps`. A family's sizes are equally common, but once grown its easy ones by `easy_weight`.
    """

    shares: tuple[float, ...] = (0.24, 0.26, 0.18, 0.04, 0.28)
    growth_steps: int = 3000
    first_sizes: float = 0.15
    easy_weight: float = 0.25

    def draw(self, step: int, rng: Random) -> Problem:
        """One problem of the training side, as common as it shall be at `step`."""
        name = rng.choices(FAMILIES, self.shares)[0]
        family = FAMILY[name]
        grown = min(1.0, step / self.growth_steps)
        known = ceil(len(family.sizes) * (self.first_sizes + (1 - self.first_sizes) * grown))
        easy_weight = 1.0 if grown < 1 else self.easy_weight
        weights = [easy_weight] * len(family.easy_sizes) + [1.0] * len(family.hard_sizes)
        size = rng.choices(family.sizes[:known], weights[:known])[0]
        return sample(name, size, rng, heldout=False)


@dataclass(frozen=True, slots=True)
class Batch:
    """token_ids [B, S] int64, padded on the right; weights [B, S - 1] float32, of predicting each next token."""

    token_ids: Tensor
    weights: Tensor


def parts_of_step(mixture: Mixture, batch_size: int, seed: int, step: int, num_parts: int) -> list[Batch]:
    """The batch of `step`, a function of seed and step alone, cut by length into parts of about equally many tokens.

    Every step so sees the whole mixture, and hardly any padding.
    """
    rng = Random(f"{seed}/{step}")
    problems = sorted((mixture.draw(step, rng) for _ in range(batch_size)), key=_length)
    totals = list(accumulate(_length(problem) + OVERHEAD for problem in problems))
    ends = [bisect_left(totals, totals[-1] * part / num_parts) for part in range(num_parts)] + [batch_size]
    return [collate(problems[start:end]) for start, end in pairwise(ends)]


def _length(problem: Problem) -> int:
    return len(problem.prompt) + len(problem.target) + len(END)


def collate(problems: Sequence[Problem]) -> Batch:
    """Token ids of prompt, answer and end token; the answer and the end weigh 1, the prompt little."""
    texts = [problem.prompt + problem.target + END for problem in problems]
    longest = max(map(len, texts))
    rows = [[IDS[character] for character in text] + [PAD_ID] * (longest - len(text)) for text in texts]
    token_ids = torch.tensor(rows)  # [B, S]
    predicted = torch.arange(1, longest)  # [S - 1]
    in_answer = predicted >= torch.tensor([[len(problem.prompt)] for problem in problems])
    in_text = predicted < torch.tensor([[len(text)] for text in texts])
    return Batch(token_ids, torch.where(in_answer, 1.0, PROMPT_WEIGHT) * in_text)

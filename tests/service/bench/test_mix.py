"""Chains of a load: read, drawn, and in proportion."""

from collections import Counter
from itertools import islice

import pytest

from models.chain import Chain
from models.errors import ChainError, FathomError, InputError
from service.bench.mix import ChainMix


def test_chains_come_in_proportion_and_repeat_with_their_seed() -> None:
    mix = ChainMix.parse("full:0.5; 0-3,6-11:0.3 ;0,0,1:0.2")
    drawn = list(islice(mix.endless(7), 20_000))
    counts = Counter(drawn)
    assert {chain: count / len(drawn) for chain, count in counts.items()} == {
        "full": pytest.approx(0.5, abs=0.02),
        "0-3,6-11": pytest.approx(0.3, abs=0.02),
        "0,0-1": pytest.approx(0.2, abs=0.02),
    }
    assert drawn == list(islice(mix.endless(7), 20_000)) != list(islice(mix.endless(8), 20_000))
    assert sum(share for _, share in mix.layers(12)) == pytest.approx(1)
    assert mix.layers(12)[0][0] == Chain.full(12)


def test_random_chains_can_be_run_and_differ_from_the_full_one() -> None:
    mix = ChainMix.draw(200, 12, seed=1)
    assert mix == ChainMix.draw(200, 12, seed=1) != ChainMix.draw(200, 12, seed=2)
    assert len(mix.chains) == 200
    mix.check(12, 48)
    lengths = {len(Chain.parse(chain)) for chain in mix.chains}
    assert min(lengths) >= 12 - 9
    assert max(lengths) <= 12 + 9
    assert len(set(mix.chains)) > 50
    for small in (2, 3):
        ChainMix.draw(100, small, seed=0).check(small, 48)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("full:0", "'0'"),
        ("full:x", "'x'"),
        ("3-1", "3-1"),
        ("", "''"),
        ("full;;0", "''"),
        ("0:nan", "nan"),
        ("0:-1", "-1"),
    ],
)
def test_garbage_is_refused_by_its_part(text: str, word: str) -> None:
    with pytest.raises(FathomError, match=word.replace("'", ".")):
        ChainMix.parse(text)


def test_chains_are_held_against_the_model() -> None:
    with pytest.raises(ChainError, match="layer 12"):
        ChainMix.parse("full;0-12").check(12, 48)
    with pytest.raises(InputError, match="1 layers"):
        ChainMix.draw(3, 1, seed=0)

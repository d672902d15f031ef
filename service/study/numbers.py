"""The numbers of a report, from the results alone. Every number about the right answer comes with its controls."""

from collections.abc import Callable, Sequence
from math import exp, expm1, inf, log1p, sqrt
from statistics import fmean, median
from typing import Any, TypeAlias

from service.study.record import CHECKPOINTS, SampleResult
from service.study.usage import layer_rates, usage

Numbers: TypeAlias = dict[str, Any]
# How far one sample's outcome is a hit, 0..1, given the aim, "target" or "decoy".
Hit: TypeAlias = Callable[[SampleResult, str], float]
CHAINS = ("both", "skip", "repeat", "random")


def numbers_of(results: Sequence[SampleResult]) -> Numbers:
    """All that a report says: by group of samples, along the budget, by layer. Shares are in 0..1, None of nothing."""
    wrong = [one for one in results if not one.is_right]
    right = [one for one in results if one.is_right]
    winners = {
        "right": _winners(right, "target"),
        "corrected": _winners(wrong, "target"),
        "decoy": _winners(results, "decoy"),
    }
    num_layers = results[0].num_layers
    return {
        "num_layers": num_layers,
        "groups": {name: group_numbers(members) for name, members in groups_of(results).items()},
        "curve": {str(n): _along(wrong, right, n) for n in _checkpoints(results)},
        "per_chain": {
            **{way: _per_chain(wrong, way) for way in CHAINS},
            **{f"samples {one}": _per_sample(wrong, one) for one in results[0].samples},
        },
        "layers": {name: layer_rates(chains, num_layers) for name, chains in winners.items()},
        "usage": {name: usage(chains) for name, chains in winners.items()},
        "certified": _certified(results),
        "cost": _cost(results),
    }


def groups_of(results: Sequence[SampleResult]) -> dict[str, list[SampleResult]]:
    """All samples, each family, each level, each cell; nothing twice where there is only one family or level."""
    families = sorted({one.family for one in results})
    levels = sorted({one.level for one in results})
    groups = {"all": list(results)}
    if len(families) > 1:
        groups |= {family: [one for one in results if one.family == family] for family in families}
    if len(levels) > 1:
        groups |= {f"level {level}": [one for one in results if one.level == level] for level in levels}
    if len(families) > 1 and len(levels) > 1:
        cells = sorted({(one.family, one.level) for one in results})
        groups |= {
            f"{f} {level}": [one for one in results if (one.family, one.level) == (f, level)] for f, level in cells
        }
    return groups


def group_numbers(results: Sequence[SampleResult]) -> Numbers:
    """One line of the tables. `lift` is hit(target) - hit(decoy), `error` its standard error over the samples."""
    right = [one for one in results if one.is_right]
    wrong = [one for one in results if not one.is_right]
    spaces = [one.log10_answers for one in results if one.log10_answers is not None]
    return {
        "n": len(results),
        "right": len(right),
        "wrong": len(wrong),
        "log10_answers": median(spaces) if spaces else None,
        "accuracy": {way: _compare(results, hit) for way, hit in _ways(results).items()},
        "corrected": {way: _compare(wrong, hit) for way, hit in _ways(wrong).items()},
        "corrected_shorter": {way: _compare(wrong, chains_hit(way, shorter=True)) for way in CHAINS},
        "shortened": {way: _compare(right, chains_hit(way, shorter=True)) for way in CHAINS},
        "length": {
            "right": _mean_length(right, "target"),
            "corrected": _mean_length(wrong, "target"),
            "decoy": _mean_length(results, "decoy"),
            "agreement": _mean_length(results, "agreement"),
        },
        "agreement_shorter": _mean([chains_hit("both", shorter=True)(one, "agreement") for one in results]),
    }


def chains_hit(way: str, within: float = inf, shorter: bool = False) -> Hit:
    """Whether one of the first `within` chains gave the answer, if `shorter` one below the full chain's length."""

    def hit(result: SampleResult, aim: str) -> float:
        length = result.found[aim][way].length_within(within)
        return float(length is not None and not (shorter and length >= result.num_layers))

    return hit


def samples_hit(temperature: str, within: float = inf) -> Hit:
    """Chance that the full chain's answer, or one drawn from it, is the one; as many draws as the search's cost pays.

    The cost is that of `within` simulations of the search that may skip and repeat, with all sharing on both sides.
    """

    def hit(result: SampleResult, aim: str) -> float:
        if aim == "target" and result.is_right:
            return 1.0
        chance = min(exp(getattr(result.samples[temperature], aim)), 1 - 1e-15)
        return -expm1(_draws(result, within) * log1p(-chance))

    return hit


def _draws(result: SampleResult, within: float = inf) -> int:
    """How many answers can be drawn from the full chain for the layer evaluations of so many simulations."""
    spent = result.found["target"]["both"].spent
    paid = spent[max((n for n in spent if n <= within), default=min(spent))]
    return max(0, paid - result.sample_once) // result.sample_each


def _ways(results: Sequence[SampleResult]) -> dict[str, Hit]:
    temperatures = results[0].samples if results else ()
    return {way: chains_hit(way) for way in CHAINS} | {f"samples {one}": samples_hit(one) for one in temperatures}


def _compare(results: Sequence[SampleResult], hit: Hit) -> Numbers:
    pairs = [(hit(one, "target"), hit(one, "decoy")) for one in results]
    lifts = [target - decoy for target, decoy in pairs]
    return {
        "target": _mean([target for target, _ in pairs]),
        "decoy": _mean([decoy for _, decoy in pairs]),
        "lift": _mean(lifts),
        "error": _error(lifts),
    }


def _along(wrong: Sequence[SampleResult], right: Sequence[SampleResult], within: int) -> Numbers:
    """Corrected and shortened shares with `within` simulations, or samples for their cost."""
    temperatures = (wrong or right)[0].samples
    ways = {way: chains_hit(way, within) for way in CHAINS}
    ways |= {f"samples {one}": samples_hit(one, within) for one in temperatures}
    return {
        "corrected": {way: _compare(wrong, hit) for way, hit in ways.items()},
        "shortened": {way: _compare(right, chains_hit(way, within, shorter=True)) for way in CHAINS},
    }


def _checkpoints(results: Sequence[SampleResult]) -> list[int]:
    most = max(one.found["target"]["both"].simulations for one in results)
    return sorted({n for n in CHECKPOINTS if n < most} | {most})


def _per_chain(wrong: Sequence[SampleResult], way: str) -> Numbers:
    """Share of all chains tried on wrong samples that gave the answer; the samples' mean, so each weighs the same."""
    return {
        aim: _mean([one.found[aim][way].hits / one.found[aim][way].simulations for one in wrong])
        for aim in ("target", "decoy")
    }


def _per_sample(wrong: Sequence[SampleResult], temperature: str) -> Numbers:
    """Chance of one answer drawn from the full chain; the samples' mean."""
    return {aim: _mean([exp(getattr(one.samples[temperature], aim)) for one in wrong]) for aim in ("target", "decoy")}


def _winners(results: Sequence[SampleResult], aim: str) -> list[str]:
    chains = (one.found[aim]["both"].chain for one in results)
    return [chain for chain in chains if chain is not None]


def _mean_length(results: Sequence[SampleResult], aim: str) -> float | None:
    """Visits of the shortest chains found; where none is shorter the full chain may be one of them."""
    lengths = [one.found[aim]["both"].length_within(inf) for one in results]
    return _mean([length for length in lengths if length is not None])


def _certified(results: Sequence[SampleResult]) -> Numbers:
    """Searches with a hit, and those whose winner gave the answer again when run alone."""
    searches = [one for result in results for ways in result.found.values() for one in ways.values()]
    ran = [one for one in searches if one.certified is not None and one.shortest]
    return {"found": len(ran), "certified": sum(bool(one.certified) for one in ran)}


def _cost(results: Sequence[SampleResult]) -> Numbers:
    """Means over the samples. Layer evaluations of the search that may skip and repeat; seconds of everything."""
    searches = [one.found["target"]["both"] for one in results]
    return {
        "layer_evaluations": _mean([one.layer_evaluations for one in searches]),
        "layer_evaluations_naive": _mean([one.layer_evaluations_naive for one in searches]),
        "draws": _mean([_draws(one) for one in results]),
        "seconds": _mean([one.seconds for one in results]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _error(values: Sequence[float]) -> float | None:
    """Standard error of the mean; None of fewer than two."""
    if len(values) < 2:
        return None
    mean = fmean(values)
    return sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))

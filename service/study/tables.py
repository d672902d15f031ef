"""The page of a report in Markdown. Formats numbers; computes none."""

from collections.abc import Iterable, Sequence
from typing import Any

from service.study.numbers import CHAINS, Numbers

_WAYS = {"both": "search", "skip": "skip only", "repeat": "repeat only", "random": "random chains"}


def page(numbers: Numbers, pinned: dict[str, Any], figures: Sequence[str], reading: str) -> str:
    """The whole report; `figures` are file names beside it, `reading` is what a person wrote about it."""
    parts = [f"# Chains of `{pinned['model']}` per sample, with controls", _how(numbers, pinned), reading.strip()]
    parts += [f"![{name.rsplit('.', 1)[0]}]({name})" for name in figures]
    parts += [_accuracy(numbers), _corrected(numbers), _shortened(numbers), _along(numbers)]
    parts += [_layers(numbers), _usage(numbers), _setup(numbers, pinned)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _how(numbers: Numbers, pinned: dict[str, Any]) -> str:
    everyone = numbers["groups"]["all"]
    return (
        f"{everyone['n']} samples, {everyone['right']} of them right with all {numbers['num_layers']} layers; "
        f"{pinned['simulations']} simulations per search. Every search knows the answer it looks for: these are oracle "
        "numbers, and a hit proves that a chain exists, not that anything could choose it.\n\n"
        "Cells are `right answer / wrong answer` in per cent. The wrong answer (the decoy) has the form of the right "
        "one and is not what the full chain says. What chance does to the right answer, it does to the decoy, so only "
        "the difference, the lift, can be credited to the chains. *Random chains* are 1 to 4 random edits, as many as "
        "the search tries. *Samples* are drawn from the unchanged model at a temperature, for as many layer "
        "evaluations as the search makes, after its greedy answer; exact expectations. *Answers*: how many there are."
    )


def _accuracy(numbers: Numbers) -> str:
    head = ["samples", "n", "full chain", *_names(numbers), "answers"]
    rows = [
        [
            name,
            one["n"],
            _percent(one["right"] / one["n"]),
            *_pairs(one["accuracy"]),
            _answers(one["log10_answers"]),
        ]
        for name, one in numbers["groups"].items()
    ]
    note = "A sample that is right with the full chain counts as right in every column.\n\n"
    return "## Accuracy before and after\n\n" + note + _table(head, rows)


def _corrected(numbers: Numbers) -> str:
    head = ["samples", "n wrong", *_names(numbers), "search, below full length", "lift of search", "lift of random"]
    rows = [
        [
            name,
            one["wrong"],
            *_pairs(one["corrected"]),
            _pair(one["corrected_shorter"]["both"]),
            _lift(one["corrected"]["both"]),
            _lift(one["corrected"]["random"]),
        ]
        for name, one in numbers["groups"].items()
        if one["wrong"]
    ]
    return "## Wrong answers that some chain corrects\n\n" + _table(head, rows)


def _shortened(numbers: Numbers) -> str:
    head = ["samples", "n right", *(_WAYS[way] for way in CHAINS), "lift of search", "length: right", "corrected"]
    head += ["decoy", "n", "own answer with fewer layers", "length: own answer"]
    rows = [
        [name, one["right"], *(_pair(one["shortened"][way]) for way in CHAINS), _lift(one["shortened"]["both"])]
        + [_number(one["length"][kind]) for kind in ("right", "corrected", "decoy")]
        + [one["n"], _percent(one["agreement_shorter"]), _number(one["length"]["agreement"])]
        for name, one in numbers["groups"].items()
    ]
    return (
        "## Right answers with a shorter chain, and lengths\n\n"
        "Shares of the right samples whose right answer, or whose decoy, has a chain below the full length. Lengths "
        "are mean visits of the shortest chains found. The last columns look for the full chain's own answer, right or "
        "wrong, without any label.\n\n" + _table(head, rows)
    )


def _along(numbers: Numbers) -> str:
    head = ["simulations", *_names(numbers), *(f"shorter: {_WAYS[way]}" for way in ("both", "random"))]
    rows = [
        [n, *_pairs(one["corrected"]), *(_pair(one["shortened"][way]) for way in ("both", "random"))]
        for n, one in numbers["curve"].items()
    ]
    rows.append(["one chain, one sample", *(_pair(one, 2) for one in numbers["per_chain"].values()), "", ""])
    return "## Wrong answers corrected, along the budget\n\n" + _table(head, rows)


def _layers(numbers: Numbers) -> str:
    head = ["layer", *(f"{kind}: {rate}" for kind in numbers["layers"] for rate in ("skip", "repeat"))]
    rows = [
        [layer, *(_rate(rates[rate], layer) for rates in numbers["layers"].values() for rate in ("skip", "repeat"))]
        for layer in range(numbers["num_layers"])
    ]
    return "## Winning chains, layer by layer\n\nPer cent that never visit, and that revisit, a layer.\n\n" + _table(
        head, rows
    )


def _usage(numbers: Numbers) -> str:
    head = ["winners", "n", "distinct", "commonest chain", "entropy (nats)", "largest share of a layer", "overlap"]
    rows = [
        [
            name,
            one["n"],
            one["distinct"],
            _percent(one["most_common"]),
            _number(one["entropy"], 3),
            _number(one["concentration"], 3),
            _number(one["overlap"], 3),
        ]
        for name, one in numbers["usage"].items()
    ]
    return "## Use of the layers\n\n" + _table(head, rows)


def _setup(numbers: Numbers, pinned: dict[str, Any]) -> str:
    cost, certified = numbers["cost"], numbers["certified"]
    lines = [
        f"A search made {_number(cost['layer_evaluations'], 0)} layer evaluations (one layer, one token) on average, "
        f"{_number(cost['layer_evaluations_naive'], 0)} without shared prefixes; the same pays "
        f"{_number(cost['draws'], 0)} samples. {certified['certified']} of "
        f"{certified['found']} winners gave their answer again when run alone. A sample with all its searches and "
        f"controls took {_number(cost['seconds'])} s.",
        *(f"- {name}: `{value}`" for name, value in pinned.items()),
    ]
    return "## Set-up\n\n" + "\n".join([lines[0], "", *lines[1:]])


def _names(numbers: Numbers) -> list[str]:
    return [_WAYS.get(way, way.replace("samples ", "samples, T=")) for way in numbers["groups"]["all"]["accuracy"]]


def _pairs(ways: Numbers) -> list[str]:
    return [_pair(one) for one in ways.values()]


def _pair(one: Numbers, digits: int = 0) -> str:
    return f"{_percent(one['target'], digits)} / {_percent(one['decoy'], digits)}"


def _lift(one: Numbers) -> str:
    error = "" if one["error"] is None else f" ± {100 * one['error']:.0f}"
    return "-" if one["lift"] is None else f"{100 * one['lift']:+.0f}{error}"


def _percent(share: float | None, digits: int = 0) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f}"


def _rate(rates: Sequence[float], layer: int) -> str:
    return _percent(rates[layer]) if rates else "-"


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _answers(power: float | None) -> str:
    if power is None:
        return "-"
    return f"{10**power:.0f}" if power < 4 else f"1e{power:.1f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)

"""What a timing of residual forms found, as tables for people and as JSON: times, and gains over the standard form."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

from rich import box
from rich.console import Group
from rich.table import Table

from models.parallel.trial import Measured, Trial

_COLUMNS = ("ms (model)", "off", "gain (model)", "all-reduces", "exposed ms")
# What all forms of one comparison share.
Load: TypeAlias = tuple[str, int, int, float | None, bool | None]


def tables(found: Sequence[Measured], trial: Trial) -> Group:
    """A table per load, one line per form; gains are over the standard form under the same load."""
    drawn = [_table(load, together) for load, together in by_load(found).items()]
    return Group(title(trial), *drawn, _caption(trial))


def by_load(found: Sequence[Measured]) -> dict[Load, list[Measured]]:
    """What was measured under each load, in the order of measuring."""
    loads: dict[Load, list[Measured]] = {}
    for one in found:
        loads.setdefault((one.phase, one.rows, one.tokens, one.latency_s, one.has_p2p), []).append(one)
    return loads


def gain(one: Measured, together: Sequence[Measured]) -> tuple[float, float] | None:
    """Measured and predicted time of the standard form over this one's; None where standard was not timed."""
    base = next((other for other in together if other.form == "standard"), None)
    return (base.best_s / one.best_s, base.predicted_s / one.predicted_s) if base else None


def as_json(found: Sequence[Measured], trial: Trial) -> dict[str, Any]:
    """All numbers, with what was asked."""
    measured = [
        {**asdict(one), "error": one.error, **_gains(one, together)}
        for together in by_load(found).values()
        for one in together
    ]
    return {"trial": asdict(trial), "measured": measured}


def _gains(one: Measured, together: Sequence[Measured]) -> dict[str, float | None]:
    both = gain(one, together) or (None, None)
    return {"gain": both[0], "predicted_gain": both[1]}


def _table(load: Load, together: Sequence[Measured]) -> Table:
    drawn = Table("form", *_COLUMNS, title=_load(load), title_justify="left", box=box.SIMPLE_HEAD)
    for column in drawn.columns[1:]:
        column.justify = "right"
    for one in together:
        drawn.add_row(one.form, *_numbers(one, together))
    return drawn


def _numbers(one: Measured, together: Sequence[Measured]) -> tuple[str, ...]:
    times = f"{1000 * one.best_s:,.4g} ({1000 * one.predicted_s:,.4g})"
    both = gain(one, together)
    gains = f"{both[0]:.2f} ({both[1]:.2f})" if both else "-"
    exposed = "-" if one.exposed_s is None else f"{1000 * one.exposed_s:,.3g}"
    return times, f"{100 * one.error:+.0f}%", gains, str(one.num_all_reduces), exposed


def _load(load: Load) -> str:
    phase, rows, tokens, latency_s, has_p2p = load
    what = f"prefill of {tokens} tokens" if phase == "prefill" else f"decode behind {tokens} tokens"
    words = [what, f"{rows} row{'s' if rows > 1 else ''}"]
    if latency_s is not None:
        words.append(f"all-reduces of {1000 * latency_s:g} ms")
    if has_p2p is not None:
        words.append("P2P" if has_p2p else "no P2P")
    return ", ".join(words)


def title(trial: Trial) -> str:
    """What was timed, in a line."""
    config = trial.config
    sizes = f"{config.num_hidden_layers} layers of {config.hidden_size}, {config.num_attention_heads} heads"
    ranks = f"{trial.num_ranks} rank{'s' if trial.num_ranks > 1 else ''}"
    return f"{ranks} on {trial.device}, {sizes}, random weights"


def _caption(trial: Trial) -> str:
    words = [f"Best of {trial.repeats} passes. The model adds up all-reduces and the parts of the upper bound."]
    if trial.module_s:
        words.append("Modules sleep until their time is over.")
    if trial.device == "cpu":
        words.append("Between CPUs there is no P2P to switch off.")
    return " ".join(words)

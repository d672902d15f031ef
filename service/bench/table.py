"""The table of a load test, for people: each rate with the physical limit under it."""

from collections.abc import Sequence

from rich.table import Table

from service.bench.run import Measurement
from service.bench.summary import Percentiles

_NOTHING = "-"
_RANKS = ("p50", "p90", "p99", "max")


def table(found: Sequence[Measurement], title: str) -> Table:
    """One column per load; rows that would be empty are left out."""
    columns = [_cells(one) for one in found]
    drawn = Table("", *(_load(one) for one in found), title=title, caption=_caption(found))
    for name in columns[0]:
        values = [column[name] for column in columns]
        if any(value != _NOTHING for value in values):
            drawn.add_row(name, *values)
    return drawn


def _load(one: Measurement) -> str:
    if one.kind == "rate":
        return f"{one.load:g}/s due"
    return "1 client" if one.load == 1 else f"{one.load:g} clients"


def _cells(one: Measurement) -> dict[str, str]:
    summary, limit = one.summary, one.limit
    by_clients = one.kind == "clients"
    return {
        "requests/s": _number(summary.requests_per_s),
        "  bare runtime, 1 at a time": _number(limit.requests_per_s()),
        "rows/s": _number(summary.rows_per_s) if summary.rows_per_s != summary.requests_per_s else _NOTHING,
        "tokens/s": _number(summary.tokens_per_s or None),
        "  memory bandwidth": _number(limit.tokens_per_s(int(one.load)) if by_clients else None),
        **_spread("latency", summary.latency),
        "sent late": str(summary.num_late) if not by_clients else _NOTHING,
        **_spread("first token", summary.first_token),
        **_spread("between tokens", summary.inter_token),
        "  memory bandwidth, ms a step": _number(1000 * limit.step_s if limit.step_s else None),
        "server CPU, ms a request": _number(one.server_cpu_ms),
        "  bare runtime, ms": _number(1000 * limit.request_cpu_s if limit.request_cpu_s else None),
        "server memory, MiB": _number(one.server_resident_bytes / 2**20 if one.server_resident_bytes else None),
        "status": " ".join(f"{status or 'none'}:{count}" for status, count in summary.status.items()),
    }


def _spread(name: str, found: Percentiles | None) -> dict[str, str]:
    values = (found.p50_ms, found.p90_ms, found.p99_ms, found.max_ms) if found else (None,) * 4
    return {f"{name} {which}, ms": _number(value) for which, value in zip(_RANKS, values, strict=True)}


def _number(value: float | None) -> str:
    if value is None:
        return _NOTHING
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _caption(found: Sequence[Measurement]) -> str:
    limit = found[0].limit
    if limit.step_bytes and limit.bytes_per_s:
        return (
            f"a step reads {limit.step_bytes / 2**20:,.0f} MiB of weights; a copy moves "
            f"{limit.bytes_per_s / 2**30:.1f} GiB/s; prompts for free"
        )
    return "" if limit.request_s else "no limit is known: the repository does not have the model as parts"

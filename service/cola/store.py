"""The statements on remembered chains and jobs, within one transaction. Imports SQLAlchemy; imported lazily."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Table, delete, insert, select, tuple_, update

from models.chain import Chain
from service.cola.jobs import UNFINISHED, Job
from service.cola.memory import Cursor, Remembered, Subject
from service.cola.tables import chains, jobs

# Databases bound the parameters of a statement.
_AT_ONCE = 500
_CHAIN_FIELDS = [field.name for field in fields(Remembered)]
_JOB_FIELDS = [field.name for field in fields(Job)]


class Store:
    """Rows in, rows out."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def put_chains(self, found: Iterable[Remembered]) -> None:
        """Write rows; each replaces the one of the same id, and the last of several given."""
        rows = {one.id: _chain_row(one) for one in found}
        for some in _batches(sorted(rows)):  # in one order, so that two writers never wait for each other
            self._connection.execute(delete(chains).where(chains.c.id.in_(some)))
            self._connection.execute(insert(chains), [rows[identifier] for identifier in some])

    def recall(self, subjects: Sequence[Subject]) -> dict[Subject, Chain]:
        """The newest chain of each subject that has one; the subjects differ in their input at most."""
        found: dict[Subject, Chain] = {}
        for some in _batches(subjects):
            subject = some[0]
            query = select(chains.c.input_hash, chains.c.chain).where(
                chains.c.input_hash.in_([one.input_hash for one in some]),
                chains.c.model == subject.model,
                chains.c.version == subject.version,
                chains.c.artifact_hash == subject.artifact_hash,
                chains.c.residual_form == subject.residual_form,
            )
            by_input = {one.input_hash: one for one in some}
            for input_hash, layers in self._connection.execute(query.order_by(chains.c.created, chains.c.id)):
                found[by_input[input_hash]] = Chain(tuple(layers))
        return found

    def chain(self, identifier: str) -> Remembered | None:
        row = self._connection.execute(select(chains).where(chains.c.id == identifier)).one_or_none()
        return None if row is None else _remembered(row)

    def chain_page(self, filters: Mapping[str, str], limit: int, before: Cursor | None) -> list[Remembered]:
        """Up to `limit` rows whose columns have these values, newest first."""
        query = select(chains).where(*(chains.c[name] == value for name, value in filters.items()))
        rows = self._connection.execute(query.where(*_older(chains, before)).order_by(*_by_age(chains)).limit(limit))
        return [_remembered(row) for row in rows]

    def forget(self, identifier: str) -> bool:
        """Delete a chain; says whether it was there."""
        return self._connection.execute(delete(chains).where(chains.c.id == identifier)).rowcount > 0

    def add_job(self, job: Job, owner: str, lease_until: float) -> None:
        self._connection.execute(insert(jobs), {**asdict(job), "owner": owner, "lease_until": lease_until})

    def save_job(self, job: Job, lease_until: float) -> bool:
        """Write where a job stands; false, and nothing written, if it was cancelled from elsewhere."""
        query = update(jobs).where(jobs.c.id == job.id, jobs.c.state != "cancelled")
        return self._connection.execute(query.values(**asdict(job), lease_until=lease_until)).rowcount > 0

    def job(self, identifier: str) -> Job | None:
        row = self._connection.execute(_select_jobs().where(jobs.c.id == identifier)).one_or_none()
        return None if row is None else Job(**row._mapping)

    def job_page(self, limit: int, before: Cursor | None) -> list[Job]:
        """Up to `limit` jobs, newest first, without their results."""
        query = _select_jobs(without="result").where(*_older(jobs, before)).order_by(*_by_age(jobs)).limit(limit)
        return [Job(**row._mapping) for row in self._connection.execute(query)]

    def cancel_job(self, identifier: str, now: float) -> None:
        """Mark an unfinished job as cancelled; whoever runs it learns of it when it next saves."""
        query = update(jobs).where(jobs.c.id == identifier, jobs.c.state.in_(UNFINISHED))
        self._connection.execute(query.values(state="cancelled", ended=now))

    def interrupt_lost(self, is_lost: Callable[[str, float], bool], now: float, reason: str) -> None:
        """Mark the unfinished jobs as interrupted whose owner and end of lease say that nobody runs them."""
        query = select(jobs.c.id, jobs.c.owner, jobs.c.lease_until).where(jobs.c.state.in_(UNFINISHED))
        lost = [identifier for identifier, *lease in self._connection.execute(query).all() if is_lost(*lease)]
        for some in _batches(lost):
            unfinished = update(jobs).where(jobs.c.id.in_(some), jobs.c.state.in_(UNFINISHED))
            self._connection.execute(unfinished.values(state="interrupted", ended=now, reason=reason))

    def prune_jobs(self, max_kept: int) -> None:
        """Delete the finished jobs beyond the newest `max_kept`."""
        query = select(jobs.c.id).where(jobs.c.ended.is_not(None)).order_by(*_by_age(jobs)).offset(max_kept)
        for some in _batches(self._connection.execute(query).scalars().all()):
            self._connection.execute(delete(jobs).where(jobs.c.id.in_(some)))


def _batches(entries: Sequence[Any]) -> list[Sequence[Any]]:
    return [entries[start : start + _AT_ONCE] for start in range(0, len(entries), _AT_ONCE)]


def _select_jobs(without: str = "") -> Any:
    return select(*(jobs.c[name] for name in _JOB_FIELDS if name != without))


def _by_age(table: Table) -> tuple[ColumnElement[Any], ...]:
    return table.c.created.desc(), table.c.id.desc()


def _older(table: Table, before: Cursor | None) -> list[ColumnElement[bool]]:
    return [] if before is None else [tuple_(table.c.created, table.c.id) < tuple_(*before)]


def _chain_row(one: Remembered) -> dict[str, Any]:
    row = {name: getattr(one, name) for name in _CHAIN_FIELDS}
    return {**row, "id": one.id, "chain": list(one.chain.layers)}


def _remembered(row: Row[Any]) -> Remembered:
    values = {name: row._mapping[name] for name in _CHAIN_FIELDS}
    return Remembered(**{**values, "chain": Chain(tuple(values["chain"]))})

"""The tables of remembered chains and of jobs, and how a database is opened. Imports SQLAlchemy; imported lazily."""

from typing import Any

from sqlalchemy import (
    JSON,
    URL,
    Column,
    Double,
    Engine,
    Index,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.exc import DBAPIError

# Seconds a writer waits for another process on the same SQLite file.
_BUSY_S = 5.0
# A server that is gone is noticed in seconds, not in the minutes of the system's defaults.
_POSTGRES_ARGUMENTS = {"connect_timeout": "5", "tcp_user_timeout": "5000"}
_NOT_WRITABLE = ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_IOERR")

_metadata = MetaData()
# Times are seconds since 1970, UTC.
chains = Table(
    "fathom_chains",
    _metadata,
    Column("id", String(32), primary_key=True),
    Column("input_hash", String(64), nullable=False, index=True),
    Column("model", String(100), nullable=False),
    Column("version", String(100), nullable=False),
    Column("artifact_hash", String(64), nullable=False),
    Column("residual_form", String(100), nullable=False),
    Column("config_hash", String(64), nullable=False),
    Column("chain", JSON, nullable=False),
    Column("reward", String(100), nullable=False),
    Column("reward_value", Double, nullable=False),
    Column("certificate", JSON, nullable=False),
    Column("created", Double, nullable=False),
    Index("ix_fathom_chains_age", "created", "id"),
)
jobs = Table(
    "fathom_jobs",
    _metadata,
    Column("id", String(32), primary_key=True),
    Column("owner", String(300), nullable=False),
    Column("lease_until", Double, nullable=False),
    Column("model", String(100), nullable=False),
    Column("version", String(100), nullable=False),
    Column("state", String(20), nullable=False),
    Column("created", Double, nullable=False),
    Column("started", Double),
    Column("ended", Double),
    Column("progress", JSON, nullable=False),
    Column("result", JSON(none_as_null=True)),
    Column("reason", Text, nullable=False),
    Index("ix_fathom_jobs_age", "created", "id"),
)


def open_tables(place: str) -> Engine:
    """A database with our tables, made where they are missing; `place` is a path or an SQLAlchemy URL."""
    url = make_url(place) if "://" in place else URL.create("sqlite", database=place)
    if url.get_driver_name().startswith("psycopg"):
        url = url.update_query_dict({**_POSTGRES_ARGUMENTS, **url.query})
    arguments: dict[str, Any] = {"timeout": _BUSY_S} if url.get_backend_name() == "sqlite" else {}
    engine = create_engine(url, connect_args=arguments, pool_pre_ping=True)
    if url.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
    try:
        _metadata.create_all(engine)
    except DBAPIError:
        _metadata.create_all(engine)  # another process made them between the look and the making
    return engine


def is_not_writable(error: DBAPIError) -> bool:
    """Whether a SQLite file cannot be made or written where it is; a damaged file is another matter."""
    return str(getattr(error.orig, "sqlite_errorname", "")).startswith(_NOT_WRITABLE)


def _prepare_sqlite(connection: Any, record: object) -> None:
    """Readers and one writer of several processes at once; a crash of the machine may lose the last seconds."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")

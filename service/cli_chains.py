"""The commands `fathom chains export` and `fathom chains import`: remembered chains as JSON lines."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from service.cola.memory import Memory

app = typer.Typer(no_args_is_help=True, help="Export and import remembered chains.")

Repository = Annotated[str | None, typer.Option(help="Folder or URL of models; FATHOM_REPOSITORY, else ./repository.")]
Place = Annotated[
    str | None, typer.Option("--memory", help="SQLite file or SQLAlchemy URL; FATHOM_MEMORY, else in the repository.")
]


@app.command("export")
def export_chains(repository: Repository = None, memory: Place = None) -> None:
    """Write every remembered chain to standard output, one JSON object a line."""

    async def write() -> None:
        from service.api.chains import written

        async with open_memory(repository, memory) as opened:
            async for one in opened.all():
                print(written(one).model_dump_json())

    asyncio.run(write())


@app.command("import")
def import_chains(
    file: Annotated[typer.FileText, typer.Argument(help="JSON lines of an export; '-' reads standard input.")],
    repository: Repository = None,
    memory: Place = None,
) -> None:
    """Remember every chain of an export, or none if a line is wrong; what is there of the same id is replaced."""

    async def read(lines: Iterable[str]) -> int:
        from service.api.chains import read_line

        found = [read_line(line, number) for number, line in enumerate(lines, 1) if line.strip()]
        async with open_memory(repository, memory) as opened:
            await opened.remember(*found)
        return len(found)

    print(f"{asyncio.run(read(file))} chains imported", file=sys.stderr)


@asynccontextmanager
async def open_memory(repository: Path | str | None, place: str | None = None) -> "AsyncIterator[Memory]":
    """The memory that a server with these settings has; opened on first use."""
    from service.cola.database import Database
    from service.cola.memory import Memory
    from service.settings import read_settings

    settings = read_settings(repository=repository, memory=place)
    database = Database(settings.memory, settings.folder)
    try:
        yield Memory(database)
    finally:
        await database.close()

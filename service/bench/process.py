"""A server of one model, in a process of its own on a free port, for as long as a load lasts."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson

from models.artifact import find_version
from models.errors import BackendError
from service.bench.target import Target, find

_CODE = "from service.cli import main; main()"
_PATIENCE_S = 300.0
_KEPT = 4096


@asynccontextmanager
async def serving(repository: Path, model: str) -> AsyncIterator[Target]:
    """Serve the latest version of `model`, no other model, with this process's settings.

    Raises UnknownModelError, and BackendError with the server's last words if it ends or is never ready.
    """
    found = find_version(repository, model)
    # Beside the files, where that can be: there they need no copy. A link to them would lead out of the repository.
    beside = repository if os.access(repository, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=beside) as folder:
        shutil.copytree(found, Path(folder) / model / found.name, copy_function=_link)
        command = [sys.executable, "-c", _CODE, "serve", "--repository", folder, "--host", "127.0.0.1", "--port", "0"]
        # Remembered chains are neither to be measured, nor to be changed by measuring.
        environment = {name: value for name, value in os.environ.items() if name.upper() != "FATHOM_MEMORY"}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment)
        words = _Words(process)
        try:
            yield await _ready(process, words, model)
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait)
            words.close()


def _link(source: str, target: str) -> None:
    """The same file under a second name; a copy where the file system cannot do that."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


class _Words:
    """What a process says on standard error, read so that it never waits; the end is kept."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        self._stream, self.port = process.stderr, 0
        self.last = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._thread.join()
        self._stream.close()

    def _read(self) -> None:
        while said := os.read(self._stream.fileno(), 1 << 16):
            self.last = (self.last + said)[-max(_KEPT, len(said)) :]
            if not self.port:
                lines = self.last.rpartition(b"\n")[0].splitlines()
                self.port = next((_port(line) for line in lines if b'"address"' in line), 0)


def _port(line: bytes) -> int:
    return int(str(orjson.loads(line)["address"]).rpartition(":")[2])


async def _ready(process: subprocess.Popen[bytes], words: _Words, model: str) -> Target:
    async with asyncio.timeout(_PATIENCE_S):
        while process.poll() is None:
            if words.port and (target := await find("127.0.0.1", words.port, model)):
                return target
            await asyncio.sleep(0.02)
    raise BackendError(f"the server ended with {process.returncode}: {words.last.decode(errors='replace')[-500:]}")

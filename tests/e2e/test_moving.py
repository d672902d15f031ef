"""The pages about moving in, followed to the letter: files written, commands run, output compared."""

import os
import re
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs/moving").glob("*.md"))
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
PORT = re.compile(r"(?:localhost:|--port |port=)(80\d\d)\b")


class Reader:
    """Somebody who follows a page in an empty folder, with ports of their own."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._ports: dict[str, str] = {}
        path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
        python = f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', ROOT)}"
        self._environment = {**os.environ, "PATH": path, "PYTHONPATH": python}

    def write(self, code: str) -> None:
        """Keep a file that its first line names; what was before need not run any more."""
        name = code.partition("\n")[0].removeprefix("# ")
        if name.startswith("before: "):
            compile(code, name, "exec")
        else:
            assert re.fullmatch(r"\w+\.py", name), name
            (self._folder / name).write_text(self._local(code))

    def run(self, transcript: str) -> None:
        """Run commands and compare what they print; those that end in & go on until the page ends."""
        for entry in re.split(r"^\$ ", transcript, flags=re.MULTILINE)[1:]:
            command, _, printed = entry.partition("\n")
            if command.endswith(" &"):
                self._stack.enter_context(self._serving(command.removesuffix(" &")))
                continue
            done = subprocess.run(
                ["bash", "-c", self._local(command)],
                cwd=self._folder,
                env=self._environment,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            assert numbers(done.stdout) == numbers(printed), command
            assert words(done.stdout) == words(printed), command

    @contextmanager
    def _serving(self, command: str) -> Iterator[None]:
        before = set(self._ports.values())
        local = self._local(command)
        log = (self._folder / f"{len(before)}.log").open("w+")
        with (
            log,
            subprocess.Popen(
                ["bash", "-c", f"exec {local}"], cwd=self._folder, env=self._environment, stderr=log, stdout=log
            ) as process,
        ):
            try:
                self._wait(process, log.name)
                yield
                process.send_signal(signal.SIGTERM)
                # Uvicorn itself ends by the signal once it has answered.
                assert process.wait(20) in (0, -signal.SIGTERM), Path(log.name).read_text()
            finally:
                process.kill()

    def _wait(self, process: subprocess.Popen[bytes], log: str) -> None:
        """Until every port the page has named so far answers."""
        ends = time.monotonic() + 60
        while not all(map(answers, self._ports.values())):
            assert process.poll() is None, Path(log).read_text()
            assert time.monotonic() < ends, Path(log).read_text()
            time.sleep(0.05)

    def _local(self, text: str) -> str:
        """The text with ports that are free here."""

        def own(match: re.Match[str]) -> str:
            port = self._ports.setdefault(match[1], str(free_port()))
            return match[0].replace(match[1], port)

        return PORT.sub(own, text)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def answers(port: str) -> bool:
    """Whether a server is ready, or at least there where it is not ours."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code in (200, 404)
    except httpx.TransportError:
        return False


def numbers(text: str) -> list[object]:
    """As printed on the page: to two places."""
    return [pytest.approx(float(one), abs=0.006) for one in re.findall(r"-?\d+\.\d+", text)]


def words(text: str) -> str:
    return re.sub(r"-?\d+\.\d+", "#", text.strip())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_can_be_followed(page: Path, tmp_path: Path) -> None:
    blocks = BLOCK.findall(page.read_text())
    assert {"python", "console"} <= {language for language, _ in blocks}
    with ExitStack() as stack:
        reader = Reader(tmp_path, stack)
        for language, text in blocks:
            if language == "python":
                reader.write(text)
            elif language == "console":
                reader.run(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_says_what_is_missing_and_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    assert "## What has no counterpart yet" in text
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (page.parent / target).exists(), target


def test_settings_that_pages_name_are_there() -> None:
    from service.settings import PREFIX, Settings

    named = {name for page in PAGES for name in re.findall(r"FATHOM_[A-Z_]+", page.read_text())}
    assert named
    assert named <= {f"{PREFIX}{field}".upper() for field in Settings.model_fields}


def test_every_page_is_linked_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    assert PAGES
    assert [page.name for page in PAGES if f"docs/moving/{page.name}" not in text] == []

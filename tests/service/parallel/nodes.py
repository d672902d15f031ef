"""Two nodes with a rank each and a server on the first: prints what became of them, as JSON.

In network namespaces of their own, joined by a cable, where this process may make some: it is then run by
`unshare --user --map-root-user --net --mount`. Elsewhere the nodes are two addresses of this machine.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

RANKS_PORT, STORE_PORT, HTTP_PORT = 29471, 29472, 29473
WORKERS = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "tests", "--rdzv-backend", "c10d")
RESTARTS = ("--max-restarts", "5", "--monitor-interval", "0.1")
_CLONE_NEWNET = 0x40000000
# Makes namespaces `a` and `b` with a cable between them.
CABLE = """
mount -t tmpfs tmpfs /run && mkdir /run/netns && ip netns add a && ip netns add b
ip link add wire netns a type veth peer name wire netns b
ip -n a addr add 10.77.0.1/24 dev wire && ip -n b addr add 10.77.0.2/24 dev wire
for node in a b; do ip -n $node link set lo up && ip -n $node link set wire up; done
"""


class Node:
    """A machine as far as its network goes."""

    def __init__(self, name: str, address: str, folder: Path, is_apart: bool) -> None:
        self.name, self.address, self._folder = name, address, folder
        self._enter = ("nsenter", f"--net=/run/netns/{name}") if is_apart else ()
        self._environment = {**os.environ, "GLOO_SOCKET_IFNAME": "wire" if is_apart else "lo"}
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, *command: str, **environment: str) -> "subprocess.Popen[bytes]":
        """A process on this node, with a log beside the others."""
        with (self._folder / f"{self.name}.log").open("ab") as log:
            return subprocess.Popen(
                (*self._enter, *command),
                env={**self._environment, **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def join(self, leader: "Node", repository: str) -> None:
        """Have torchrun start this node's rank, and start it again whenever it ends."""
        agent = (sys.executable, "-m", "torch.distributed.run", *WORKERS, *RESTARTS, "--local-addr", self.address)
        meeting = ("--rdzv-endpoint", f"{leader.address}:{STORE_PORT}", "--rdzv-conf", f"is_host={int(self is leader)}")
        worker = ("-m", "service.parallel.worker", "--control", f"tcp://{leader.address}:{RANKS_PORT}")
        files = ("--secret", str(self._folder / "secret"), "--repository", repository)
        self.process = self.run(*agent, *meeting, *worker, *files)

    def leave(self) -> None:
        """Lose everything that runs on this node, at once."""
        if self.process is None:
            return
        left = children(self.process.pid)
        self.process.kill()
        self.process.wait()
        self.process = None
        for child in left:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def children(process: int) -> list[int]:
    """Processes that another one has started."""
    found = subprocess.run(("ps", "-o", "pid=", "--ppid", str(process)), capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


class Asking:
    """A client on the first node."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}:{HTTP_PORT}"

    def status(self, path: str = "/health/ready") -> int:
        try:
            with urllib.request.urlopen(self._url + path, timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def answer(self) -> tuple[int, str]:
        """Status, and the text or the seconds after which to come back."""
        body = json.dumps({"model": "tinylm", "inputs": ["12+34="]}).encode()
        request = urllib.request.Request(self._url + "/predict", body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return 200, json.loads(response.read())["outputs"][0]["text"]
        except urllib.error.HTTPError as error:
            return error.code, str(error.headers.get("retry-after"))


def within(seconds: float, happens: Callable[[], bool]) -> float:
    """How long it took; infinite if it did not happen."""
    started = time.monotonic()
    while not happens():
        if time.monotonic() - started > seconds:
            return float("inf")
        time.sleep(0.02)
    return time.monotonic() - started


def story(nodes: tuple[Node, Node], repository: str, folder: Path, option: str) -> dict[str, Any]:
    """Up, a rank of the other node killed, the other node lost and started again, the end."""
    (folder / "secret").write_bytes(os.urandom(32).hex().encode())
    first, second = nodes
    settings = {
        "FATHOM_REPOSITORY": repository,
        "FATHOM_RANKS_ADDRESS": f"tcp://{first.address}:{RANKS_PORT}",
        "FATHOM_RANKS_SECRET": str(folder / "secret"),
        "FATHOM_MEMORY": "sqlite://",
    }
    code = "from service.cli import main; import sys; sys.argv[0] = 'fathom'; main()"
    serve = ("serve", "--host", first.address, "--port", str(HTTP_PORT), option, "2")
    server, asking, told = first.run(sys.executable, "-c", code, *serve, **settings), Asking(first.address), {}

    def ready() -> bool:
        return asking.status() == 200

    def lost() -> bool:
        return asking.status() == 503

    try:
        for node in nodes:
            node.join(first, repository)
        told["up_s"], told["first"] = within(120, ready), asking.answer()
        assert second.process is not None
        os.kill(children(second.process.pid)[0], signal.SIGKILL)
        told["rank_lost_s"], told["meanwhile"] = within(10, lost), asking.answer()
        told["rank_back_s"], told["second"] = within(60, ready), asking.answer()
        second.leave()
        told["node_lost_s"] = within(10, lost)
        for node in nodes:  # as whoever looks after services does
            node.leave()
            node.join(first, repository)
        told["node_back_s"], told["third"] = within(120, ready), asking.answer()
        server.terminate()
        told["code"] = server.wait(30)
    finally:
        for node in nodes:
            node.leave()
        server.kill()
        server.wait()
    return told


def enter(namespace: str) -> None:
    """Have this process see the network of another."""
    with open(namespace) as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def main() -> None:
    repository, folder, is_apart = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "namespaces"
    if is_apart:
        subprocess.run(("sh", "-ec", CABLE), check=True)
    addresses = ("10.77.0.1", "10.77.0.2") if is_apart else ("127.0.0.1", "127.0.0.2")
    first, second = (Node(name, address, folder, is_apart) for name, address in zip("ab", addresses, strict=True))
    if is_apart:  # to ask where the server is
        enter("/run/netns/a")
    print(json.dumps(story((first, second), repository, folder, sys.argv[4])))


if __name__ == "__main__":
    main()

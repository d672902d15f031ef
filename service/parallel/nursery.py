"""A process that has imported what ranks need and forks one whenever it is told: a new rank is there at once.

Importing torch takes seconds, which a group that has to be built anew does not have. Nothing runs in here, no thread
and no device: what is forked is as good as new. Ends with its parent, and its children end with it.
"""

import os
import signal
import socket
import sys
import traceback
from typing import Any

from service.parallel.address import parse_address
from service.parallel.pulse import LOST, die_with_parent
from service.parallel.wire import Wire
from service.parallel.worker import Place, run


def main() -> None:
    """Serve the parent behind the descriptor that is the first argument, until it is gone."""
    parent = int(sys.argv[2])
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from service.backends.ranks import prepare  # imports torch

    prepare()

    wire = Wire(socket.socket(fileno=int(sys.argv[1])))
    children: dict[int, int] = {}
    wire.send_json({"ready": True})
    try:
        while True:
            wire.send_json(_done(wire.receive_json(), children, wire))
    except OSError:
        _kill(children)
        os._exit(0)  # taking torch down takes as long as a server may have left


def _done(order: dict[str, Any], children: dict[int, int], wire: Wire) -> dict[str, Any]:
    if "fork" in order:
        rank = order["fork"]["rank"]
        children[rank] = _fork(order["fork"], wire)
        return {"pid": children[rank]}
    return {"ended": _kill(children)}


def _fork(told: dict[str, Any], wire: Wire) -> int:
    nursery = os.getpid()
    child = os.fork()
    if child:
        return child
    code = LOST
    try:
        die_with_parent(nursery)
        wire.close_copy()
        secret = bytes.fromhex(told["secret"])
        code = run(Place(told["rank"], told["size"], parse_address(told["control"]), secret))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)  # never back into the nursery's loop


def _kill(children: dict[int, int]) -> dict[str, int]:
    """End all children, stopped ones too; how those ended that had done so before, by rank: signals are negative."""
    ended = {}
    for rank, child in children.items():
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            ended[str(rank)] = os.waitstatus_to_exitcode(status)
            continue
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    children.clear()
    return ended


if __name__ == "__main__":
    main()

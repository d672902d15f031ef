"""Who comes in has to know the secret, who leads has to know it too, and what was overheard opens nothing."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.errors import BackendError
from service.parallel import greeting
from service.parallel.address import Address, parse_address
from service.parallel.digest import mac
from service.parallel.door import Door
from service.parallel.greeting import PROTOCOL, Hello, introduce
from service.parallel.secret import read_secret
from service.parallel.wire import Wire

SECRET = b"sixteen bytes at least"
HELLO = Hello(1, 2, "7.abc", "plan")


@pytest.fixture(params=["path", "port"])
def door(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Door, Address]]:
    if request.param == "path":
        address = Address(path=str(tmp_path / "control"))
        opened = Door(address, SECRET)
    else:
        opened = Door(Address(host="127.0.0.1"), SECRET)
        address = Address(host="127.0.0.1", port=opened.port)
    yield opened, address
    opened.close()


def test_rank_that_knows_the_secret_comes_in(door: tuple[Door, Address]) -> None:
    opened, address = door
    wire = introduce(address.connect(5), SECRET, HELLO, 5)
    arrival = opened.arrivals.get(timeout=5)
    assert arrival.hello == HELLO
    assert arrival.host == address.host
    arrival.wire.send(b"welcome", b", rank")
    assert wire.receive(5) == b"welcome, rank"
    wire.close()
    arrival.wire.close()


def test_neither_side_goes_on_without_the_secret(door: tuple[Door, Address]) -> None:
    opened, address = door
    with pytest.raises(ConnectionError):
        introduce(address.connect(5), b"another sixteen bytes", HELLO, 5)
    assert opened.arrivals.empty()


def test_leader_that_does_not_know_the_secret_is_left(tmp_path: Path) -> None:
    address = Address(path=str(tmp_path / "control"))
    listener = address.listen()

    def pretend() -> None:
        wire = Wire(listener.accept()[0])
        wire.send(PROTOCOL, os.urandom(32))
        wire.receive(5)
        wire.send(os.urandom(32))
        wire.close()

    thread = threading.Thread(target=pretend)
    thread.start()
    with pytest.raises(ConnectionError, match="does not know the secret"):
        introduce(address.connect(5), SECRET, HELLO, 5)
    thread.join()
    listener.close()


def test_what_was_overheard_does_not_open_the_door_again(
    door: tuple[Door, Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, address = door
    sent: list[bytes] = []
    monkeypatch.setattr(greeting, "mac", lambda *parts: sent.append(mac(*parts)) or sent[-1])
    introduce(address.connect(5), SECRET, HELLO, 5).close()
    opened.arrivals.get(timeout=5).wire.close()
    again = Wire(address.connect(5))
    again.receive(5)
    again.send(os.urandom(32), sent[0], b'{"rank":1,"size":2,"process":"7.abc","role":"plan"}')
    with pytest.raises(ConnectionError):
        again.receive(5)
    again.close()
    assert opened.arrivals.empty()


def test_too_many_that_say_nothing_are_turned_away_and_ranks_still_come_in(door: tuple[Door, Address]) -> None:
    opened, address = door
    silent = [address.connect(5) for _ in range(40)]
    for connection in silent:
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()
    ends = threading.Event()
    for _ in range(100):
        try:
            introduce(address.connect(5), SECRET, HELLO, 5).close()
            break
        except ConnectionError:
            ends.wait(0.05)
    opened.arrivals.get(timeout=5).wire.close()


@pytest.mark.parametrize("text", ["tcp://", "tcp://host", "http://host:1", "host:1", "tcp://host:1/x", "tcp://h:x", ""])
def test_what_is_no_address_is_named(text: str) -> None:
    with pytest.raises(BackendError, match="tcp://host:port"):
        parse_address(text)
    assert str(parse_address("tcp://leader:29400")) == "tcp://leader:29400"


def test_address_that_is_taken_is_named(tmp_path: Path) -> None:
    with Address(host="127.0.0.1").listen() as listener:
        port = listener.getsockname()[1]
        with pytest.raises(BackendError, match=f"{port}.*FATHOM_RANKS_ADDRESS"):
            Door(Address(host="127.0.0.1", port=port), SECRET)


def test_secret_that_is_missing_or_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot be read"):
        read_secret(tmp_path / "absent")
    (tmp_path / "short").write_text("12345\n")
    with pytest.raises(BackendError, match="5 bytes"):
        read_secret(tmp_path / "short")
    (tmp_path / "secret").write_bytes(SECRET + b"\n")
    assert read_secret(tmp_path / "secret") == SECRET

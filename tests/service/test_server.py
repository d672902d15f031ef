"""The socket side: addresses that cannot be had, and clients that do not behave."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from service.server import AddressError, listen

BODY = b'{"model": "tinylm", "inputs": ["12+7="], "parameters": {"max_new_tokens": 2}}'
HEAD = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY)


@contextmanager
def _connected(server: Any) -> Iterator[socket.socket]:
    with socket.create_connection(server.address, timeout=30) as connection:
        yield connection


def _answers(connection: socket.socket, count: int) -> list[tuple[int, Any]]:
    """Status and JSON body of the next `count` responses."""
    found = []
    with connection.makefile("rb") as file:
        for _ in range(count):
            status = int(file.readline().split()[1])
            headers = {}
            while (line := file.readline()) != b"\r\n":
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            found.append((status, json.loads(file.read(int(headers["content-length"])))))
    return found


def _serves_on(server: Any) -> None:
    server.predict("tinylm", ["12+7="], parameters={"max_new_tokens": 2})


def test_port_in_use_is_named_with_the_remedy() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(AddressError, match=rf"127\.0\.0\.1:{port} is in use; choose another with --port"):
            listen("127.0.0.1", port)


def test_unknown_address_is_named() -> None:
    with pytest.raises(AddressError, match=r"192\.0\.2\.1:0 cannot be listened on"):
        listen("192.0.2.1", 0)


def test_old_clients_are_answered_and_let_go(server: Any) -> None:
    with _connected(server) as connection:
        connection.sendall(HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + BODY)
        ((status, answer),) = _answers(connection, 1)
        assert status == 200
        assert len(answer["outputs"]) == 1
        assert connection.recv(1) == b""


def test_pipelined_requests_are_answered_in_order(server: Any) -> None:
    bad = HEAD + BODY.replace(b"tinylm", b"absent")
    with _connected(server) as connection:
        connection.sendall(HEAD + BODY + bad + HEAD + BODY)
        (first, _), (second, _), (third, _) = _answers(connection, 3)
    assert (first, second, third) == (200, 404, 200)


def test_slow_body_delays_only_its_sender(server: Any) -> None:
    with _connected(server) as connection:
        connection.sendall(HEAD)
        for byte in BODY:
            connection.sendall(bytes([byte]))
            if byte == ord(","):
                _serves_on(server)
        ((status, _),) = _answers(connection, 1)
    assert status == 200


@pytest.mark.parametrize(
    "sent",
    [b"", HEAD[:20], HEAD, HEAD + BODY[:10], HEAD + BODY],
    ids=["nothing", "half a head", "a head", "half a body", "a request"],
)
def test_client_that_hangs_up_harms_nobody(server: Any, sent: bytes) -> None:
    for _ in range(5):
        with _connected(server) as connection:
            connection.sendall(sent)
            # Reset instead of a polite end.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    _serves_on(server)
    _wait_until(lambda: server.metric("fathom_running_sequences") == server.metric("fathom_queue_requests") == 0)
    assert server.metric("fathom_requests_total", outcome="500") == 0


@pytest.mark.parametrize(
    "sent",
    [b"GARBAGE\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"\0" * 9999],
    ids=["words", "TLS", "HTTP of the future", "zeros"],
)
def test_what_is_no_http_is_refused(server: Any, sent: bytes) -> None:
    with _connected(server) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100)[:12] in (b"HTTP/1.1 400", b"")
    _serves_on(server)


def test_huge_headers_harm_nobody(server: Any) -> None:
    with _connected(server) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: x\r\n")
        try:
            for number in range(100):
                connection.sendall(b"x-%d: " % number + b"a" * 10_000 + b"\r\n")
            connection.sendall(b"\r\n")
            assert connection.recv(12) in (b"HTTP/1.1 200", b"HTTP/1.1 400", b"HTTP/1.1 431", b"")
        except ConnectionError:
            pass
    _serves_on(server)


def test_hundreds_of_silent_connections_harm_nobody(server: Any) -> None:
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(_connected(server))
        _serves_on(server)
    _serves_on(server)


def test_requests_at_once_are_each_answered_once(server: Any) -> None:
    statuses: list[int] = []

    def ask(number: int) -> None:
        body = {"model": "tinylm" if number % 3 else "absent", "inputs": ["1+1="], "parameters": {"max_new_tokens": 2}}
        statuses.append(server.post("/predict", **body).status_code)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 40 + [404] * 20


def _wait_until(holds: Any) -> None:
    ends = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)

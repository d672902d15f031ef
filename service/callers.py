"""Who sends a request, how urgent it says it is and how long it may take: from HTTP headers to the engine's terms."""

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any

from models.errors import InputError
from service.engine.terms import DEFAULT_PRIORITY, NUM_PRIORITIES, Terms, Told

_KEY, _CLIENT, _TIMEOUT, _PRIORITY = b"authorization", b"x-client-id", b"x-request-timeout", b"x-request-priority"
_HEADERS = frozenset((_KEY, _CLIENT, _TIMEOUT, _PRIORITY))
_MAX_CLIENT_LENGTH = 128


def read_terms(scope: Mapping[str, Any], arrived_at: float, max_request_s: float | None, told: Told) -> Terms:
    """The terms of a request. Raises InputError naming a header that cannot be read.

    The client is whoever holds the key that came, else who it says it is, else its address.
    """
    found = {name: value for name, value in scope["headers"] if name in _HEADERS}
    timeout_s = math.inf if max_request_s is None else max_request_s
    priority = DEFAULT_PRIORITY
    if found:
        timeout_s = min(timeout_s, _timeout(found.get(_TIMEOUT)))
        priority = _priority(found.get(_PRIORITY))
    return Terms(_client(scope, found), priority, arrived_at, timeout_s, told)


def _client(scope: Mapping[str, Any], found: Mapping[bytes, bytes]) -> str:
    if key := found.get(_KEY):
        return "key " + hashlib.blake2b(key, digest_size=8).hexdigest()
    if name := found.get(_CLIENT):
        return "id " + name.decode("latin-1")[:_MAX_CLIENT_LENGTH]
    return "address " + scope["client"][0] if scope.get("client") else ""


def _timeout(sent: bytes | None) -> float:
    if sent is None:
        return math.inf
    if not re.fullmatch(rb"[0-9]{1,9}(\.[0-9]{0,9})?", sent) or not float(sent):
        raise InputError(f"header x-request-timeout is {sent[:40].decode('latin-1')!r}; send seconds, more than 0")
    return float(sent)


def _priority(sent: bytes | None) -> int:
    if sent is None:
        return DEFAULT_PRIORITY
    if not re.fullmatch(rb"[0-9]", sent) or int(sent) > NUM_PRIORITIES:
        raise InputError(
            f"header x-request-priority is {sent[:40].decode('latin-1')!r}; "
            f"send 1 (most urgent) to {NUM_PRIORITIES}, or 0 for the default of {DEFAULT_PRIORITY}"
        )
    return int(sent) or DEFAULT_PRIORITY

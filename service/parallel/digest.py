"""Digests of everything that was done so far: who missed, lost or altered one message differs for ever after."""

import hashlib
import hmac

DIGEST_BYTES = 16


class Trace:
    """A chain of digests under a key, so that nobody without it can continue the chain."""

    def __init__(self, key: bytes) -> None:
        self._key, self.digest = key, bytes(DIGEST_BYTES)

    def extend(self, *parts: bytes | bytearray) -> bytes:
        """The digest of everything before and of `parts`."""
        digest = hashlib.blake2b(self.digest, digest_size=DIGEST_BYTES, key=self._key)
        for part in parts:
            digest.update(part)
        self.digest = digest.digest()
        return self.digest


def epoch_key(secret: bytes, epoch: int, salt: bytes) -> bytes:
    """The key of one epoch, 32 bytes."""
    return mac(secret, b"epoch", str(epoch).encode(), salt)


def mac(secret: bytes, *parts: bytes | bytearray) -> bytes:
    """HMAC-SHA256 over parts, each with its length, so that no two lists of parts are the same message."""
    keyed = hmac.new(secret, digestmod=hashlib.sha256)
    for part in parts:
        keyed.update(len(part).to_bytes(8, "little") + part)
    return keyed.digest()


def equal(a: bytes | bytearray, b: bytes | bytearray) -> bool:
    """Whether two digests are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(a, b)

"""BYTES tensors: texts as JSON strings, or each as four little-endian bytes of length and its UTF-8."""

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from models.errors import InputError, LengthError
from service.api.v2.schemas import InferInput, TensorMetadata
from service.api.v2.tensors import Output, Piece

_LENGTH = struct.Struct("<I")
INPUT = TensorMetadata(name="text_input", datatype="BYTES", shape=[-1])
OUTPUT = TensorMetadata(name="text_output", datatype="BYTES", shape=[-1])


def read(inputs: Sequence[InferInput], data: Sequence[Piece], max_texts: int) -> list[str]:
    """The texts of the one input of a model of texts. Raises InputError or LengthError naming element and limit."""
    if [one.name for one in inputs] != [INPUT.name]:
        raise InputError(f"inputs {[one.name for one in inputs]} came; a model of texts takes [{INPUT.name!r}]")
    (sent,), (piece,) = inputs, data
    _check(sent, max_texts)
    texts = list(_from_bytes(piece) if isinstance(piece, memoryview) else _from_list(piece))
    if len(texts) != math.prod(sent.shape):
        raise InputError(f"{INPUT.name} has {len(texts)} texts and shape {sent.shape}; make them agree")
    return texts


def write(texts: list[str], shape: Sequence[int]) -> Output:
    """The answers, in the shape of the questions."""
    return Output(OUTPUT.name, OUTPUT.datatype, tuple(shape), texts, packed(text.encode() for text in texts))


def packed(elements: Iterable[bytes]) -> bytes:
    """Elements one after the other, each with its length before it."""
    return b"".join(_LENGTH.pack(len(one)) + one for one in elements)


def _check(sent: InferInput, max_texts: int) -> None:
    if sent.datatype != INPUT.datatype:
        raise InputError(f"{INPUT.name} came as {sent.datatype[:40]!r}; send BYTES")
    if len(sent.shape) not in (1, 2) or sent.shape[1:] not in ([], [1]):
        raise InputError(f"{INPUT.name} has shape {sent.shape}; send [N] or [N, 1]")
    if not sent.shape[0]:
        raise InputError(f"{INPUT.name} has no texts; send at least one")
    if sent.shape[0] > max_texts:
        raise LengthError(f"{sent.shape[0]} texts came; one request takes {max_texts}; send several")


def _from_list(data: list[Any]) -> Iterator[str]:
    flat = [text for row in data for text in (row if isinstance(row, list) else [row])]
    for place, text in enumerate(flat):
        if not isinstance(text, str):
            raise InputError(f"text {place} of {INPUT.name} is of type {type(text).__name__}; send strings")
        yield text


def _from_bytes(piece: memoryview) -> Iterator[str]:
    start, place = 0, 0
    while start < len(piece):
        if len(piece) - start < _LENGTH.size:
            raise InputError(f"after text {place - 1} {len(piece) - start} bytes are left; a length takes 4")
        (size,) = _LENGTH.unpack_from(piece, start)
        start += _LENGTH.size
        if size > len(piece) - start:
            raise InputError(f"text {place} announces {size} bytes and {len(piece) - start} are left; send all of it")
        yield _decode(bytes(piece[start : start + size]), place)
        start, place = start + size, place + 1


def _decode(raw: bytes, place: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"text {place} is no UTF-8 at byte {error.start}: {error.reason}; encode it as UTF-8"
        ) from error

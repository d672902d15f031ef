"""Arithmetic instead of weights: whole numbers that float32 holds exactly, for tests of everything around them.

A fake language model of any manifest's sizes: a visit mixes all visible tokens, so a wrong cache, mask, slot or order
changes the answer.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from models.artifact import Manifest
from service.backends.parts import Parts
from service.backends.protocol import Array

_PRIME = 997.0


def open_fake(manifest: Manifest) -> Parts:
    """Parts with the signatures of a real model of this manifest."""
    layers = range(manifest.num_layers)
    if manifest.language:
        embed = partial(_language_embed, manifest.language.head_size)
        head = partial(_head, manifest.language.vocab_size)
        return Parts(embed, tuple(partial(_language_layer, index) for index in layers), head)
    head = partial(_head, abs(manifest.outputs[0].shape[-1]))
    if manifest.encoder:
        pooled = partial(_pooled_head, abs(manifest.outputs[0].shape[-1]))
        visits = tuple(partial(_encoder_layer, index) for index in layers)
        return Parts(_encoder_embed, visits, pooled if manifest.encoder.is_pooled else head)
    if manifest.sequence:
        visits = tuple(partial(_sequence_layer, index) for index in layers)
        return Parts(_sequence_embed, visits, head)
    return Parts(_tensor_embed, tuple(partial(_tensor_layer, index) for index in layers), head)


def _language_embed(head_size: int, token_ids: Array, starts: Array, columns: Array) -> Sequence[Array]:
    batch, length = token_ids.shape
    new = np.arange(length)
    positions = starts[:, None] + new  # [B, S]
    cached = np.broadcast_to((columns < starts[:, None])[:, None, :], (batch, length, len(columns)))
    causal = np.broadcast_to(new[None, :] <= new[:, None], (batch, length, length))
    mask = np.concatenate((cached, causal), axis=2)[:, None]  # [B, 1, S, P + S]
    hidden = ((token_ids * 31 + positions * 7 + 1) % _PRIME).astype(np.float32)[:, :, None]  # [B, S, 1]
    return hidden, np.zeros((batch, length, head_size)), np.zeros((batch, length, head_size)), mask


def _language_layer(
    index: int, hidden: Array, cos: Array, sin: Array, mask: Array, past_key: Array, past_value: Array
) -> Sequence[Array]:
    key = np.broadcast_to(hidden[:, None], (len(hidden), past_key.shape[1], hidden.shape[1], past_key.shape[3]))
    seen = np.concatenate((past_key, key), axis=2)[:, 0, :, 0]  # [B, P + S]
    mixed = np.where(mask[:, 0], seen[:, None, :], 0.0).sum(axis=2)[:, :, None]  # [B, S, 1]
    return (hidden * (index + 2) + mixed + index).astype(np.float32) % np.float32(_PRIME), key, key


def _encoder_embed(token_ids: Array, token_types: Array | None = None) -> Sequence[Array]:
    types = np.zeros_like(token_ids) if token_types is None else token_types
    places = np.arange(token_ids.shape[1])
    return (((token_ids * 31 + types * 13 + places * 7 + 1) % _PRIME).astype(np.float32)[:, :, None],)  # [B, S, 1]


def _encoder_layer(index: int, hidden: Array, lengths: Array) -> Sequence[Array]:
    mixed = _seen(hidden, lengths).sum(axis=1, keepdims=True)
    return ((hidden * (index + 2) + mixed + index).astype(np.float32) % np.float32(_PRIME),)


def _seen(hidden: Array, lengths: Array) -> Array:
    """Zeros in the place of padding."""
    return np.where((np.arange(hidden.shape[1]) < lengths[:, None])[:, :, None], hidden, np.float32(0))


def _pooled_head(width: int, hidden: Array, lengths: Array) -> Sequence[Array]:
    return _head(width, _seen(hidden, lengths).sum(axis=1) % np.float32(_PRIME))


def _sequence_embed(steps: Array) -> Sequence[Array]:
    return (np.floor(steps.reshape(*steps.shape[:2], -1).sum(axis=2, keepdims=True) + 1).astype(np.float32) % _PRIME,)


def _sequence_layer(index: int, hidden: Array, memory: Array, *others: Array) -> Sequence[Array]:
    """A visit is told apart by what came before, and in which order."""
    read, mixed = np.empty_like(hidden), np.array(memory)  # [B, T, 1], [B, ...]
    for step in range(hidden.shape[1]):
        now = hidden[:, step, 0].reshape(-1, *(1,) * (mixed.ndim - 1))
        mixed = (mixed * 3 + now + index) % np.float32(_PRIME)
        seen = mixed.reshape(len(mixed), -1)[:, :1]
        read[:, step] = (hidden[:, step] * (index + 2) + seen + index) % np.float32(_PRIME)
    return read, mixed, *others


def _tensor_embed(features: Array) -> Sequence[Array]:
    return (np.floor(features.reshape(len(features), -1).sum(axis=1, keepdims=True)) % _PRIME,)


def _tensor_layer(index: int, hidden: Array) -> Sequence[Array]:
    return ((hidden * (index + 2) + index) % _PRIME,)


def _head(width: int, hidden: Array) -> Sequence[Array]:
    favourite = hidden % width  # [..., 1]
    return (-np.abs(np.arange(width) - favourite).astype(np.float32),)

"""From stage to stage: what a layer reads of a row is sent to where the layer is, and whole rows to where they end.

What was on its way between the ranks of a stage has arrived before it is sent on. Of a ladder (arXiv 2501.06589,
section 3) the output of the last MLP is sent beside the stream that lacks it, for the next attention must not see it.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from models.parallel.group import Landed
from models.parallel.layer import attention_reads
from models.parallel.staged import Held, Staged, in_order, numbers
from models.parallel.stream import Output, Own, Places, Stream, inverse


def moved(hidden: Staged, layer: int) -> Stream | None:
    """All rows where a layer is that they visit next, as it reads them; None on other stages.

    From each other stage comes one message [R + W, S, D], for R rows there and W of them that have an output of an MLP
    on their way which the layer's attention does not read.
    """
    station = hidden.station
    target = station.stages.of(layer)
    if (hidden.stages == target).all():
        assert isinstance(hidden.here, Stream)
        return hidden.here if target == station.stage else None
    waits = station.waits(hidden.last, layer)

    def pack(rows: Places) -> Tensor:
        assert isinstance(hidden.here, Stream)
        return _packed(hidden.here, hidden, layer, waits[rows])

    def unpack(rows: Places, source: int) -> Stream:
        message = _received(hidden, source, (len(rows) + int(waits[rows].sum()), *numbers(hidden.here).shape[1:]))
        return _unpacked(message, hidden, rows, waits[rows])

    here = _gathered(hidden, target, pack, unpack, hidden.here)
    assert not isinstance(here, Tensor)
    return here


def whole(hidden: Staged, target: int, tokens: Places | None = None) -> Tensor | None:
    """The stream of all rows [B, S, D], or of their `tokens` [B, T] alone, on one stage; None on the others."""
    station, here = hidden.station, hidden.here
    assert isinstance(here, Stream)
    rows = hidden.rows_on(station.stage)
    landed = here.landed
    if len(rows):  # who has none meets nobody
        picked = here if tokens is None else here[np.arange(len(rows))[:, None], tokens[rows]]
        landed = picked.whole(station.group)
    count = here.landed.shape[1] if tokens is None else tokens.shape[1]

    def unpack(rows: Places, source: int) -> Tensor:
        return _received(hidden, source, (len(rows), count, landed.shape[2]))

    # What lies here may be merged with others while it is sent.
    gathered = _gathered(hidden, target, lambda rows: _copied(landed), unpack, landed)
    assert gathered is None or isinstance(gathered, Tensor)
    return gathered


def _gathered(
    hidden: Staged,
    target: int,
    pack: Callable[[Places], Tensor],
    unpack: Callable[[Places, int], Held],
    mine: Held,
) -> Held | None:
    """Every row on one stage, in order: it receives from all others that have some, the first one first."""
    own, parts, numbered = hidden.station.stage, list[Held](), list[Places]()
    for source in np.unique(hidden.stages).tolist():
        rows = hidden.rows_on(source)
        if own == target:
            parts.append(mine if source == target else unpack(rows, source))
            numbered.append(rows)
        elif own == source:
            hidden.station.crossing.send(pack(rows), target)
    return in_order(parts, numbered) if parts else None


def _received(hidden: Staged, source: int, shape: tuple[int, ...]) -> Tensor:
    message = numbers(hidden.here).new_empty(shape)
    hidden.station.crossing.receive(message, source)
    return message


def _copied(tensor: Tensor) -> Tensor:
    """The numbers in memory that nobody else writes to, in a row as the network takes them."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _packed(stream: Stream, hidden: Staged, layer: int, waits: Places) -> Tensor:
    """Rows [R, S, D] with all that the layer's attention reads, then what waits for W of them."""
    residual = hidden.station.config.residual
    stream = stream.land(lambda output: attention_reads(residual, layer, output.module, output.layer))
    if not waits.any():
        return _copied(stream.landed)
    waiting = Stream(torch.zeros_like(stream.landed), stream.pieces).land().landed
    return torch.cat((stream.landed, waiting[np.flatnonzero(waits)]))


def _unpacked(message: Tensor, hidden: Staged, rows: Places, waits: Places) -> Stream:
    """The stream that was packed: each output is again one of the layer that made it."""
    stream, waiting = Stream(message[: len(rows)]), message[len(rows) :]
    places, last = inverse(np.flatnonzero(waits), len(rows)), hidden.last[rows]
    for layer in np.unique(last[waits]).tolist():
        output = Output(waiting, Landed(), nn.Identity(), "mlp", layer)
        stream = stream.launched(output, np.where(last == layer, places, -1))
    return _counting(stream, hidden, rows)


def _counting(stream: Stream, hidden: Staged, rows: Places) -> Stream:
    """Of desync the visits since all ranks' streams were equal, as an output that adds nothing any more."""
    residual = hidden.station.config.residual
    if not residual.has_streams:
        return stream
    apart = hidden.num_visits[rows] % (residual.period // 2)
    some = np.flatnonzero(apart)
    nothing = stream.landed.new_zeros(1).expand(len(some), *stream.landed.shape[1:])
    own = Own(nothing, Landed(), nn.Identity(), "mlp", 0, apart[some])
    return stream.launched(own, inverse(some, len(rows))) if len(some) else stream

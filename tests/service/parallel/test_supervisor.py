"""Ranks as processes: whatever one of them does, callers get an answer or hear that it is lost, and new ones come."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import numpy as np
import pytest

from models.artifact import Manifest
from models.chain import Chain
from models.errors import BackendError, ChainError, GroupLostError, UnavailableError
from service.backends.arrays import HostArrays
from service.backends.fake import open_fake
from service.backends.parts import LanguageBackend
from service.backends.protocol import Array, Backend, Rows
from service.engine.executor import Batch, Executor, pad
from service.parallel import supervisor as supervising
from tests.service.parallel.fakes import (
    ALL_FAIL,
    CULPRIT,
    ONE_DIES,
    ONE_DRIFTS,
    ONE_FAILS,
    ONE_HANGS,
    ONE_LOSES_IT,
    ONE_STRAYS,
    Led,
    led,
    open_never,
)

SIZE = 3
DEADLINE_S = 2.0
CHAINS = (Chain((0, 1, 2, 3)), Chain((0, 2)), Chain((3, 1, 1)), Chain((2, 0, 1, 3)))


class Uncounted:
    def count_layer_call(self, layer: int, rows: int, tokens: int) -> None:
        pass


@pytest.fixture(scope="module")
def ranks(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Led]:
    """Three ranks that come back whatever a test does to them."""
    with led(manifest, tmp_path_factory.mktemp("ranks"), SIZE, DEADLINE_S) as made:
        yield made


def plain(manifest: Manifest) -> Backend:
    assert manifest.language is not None
    return LanguageBackend(open_fake(manifest), manifest.language, HostArrays(), 64, 4)


def logits(backend: Backend, *prompts: list[int], chains: tuple[Chain, ...] = CHAINS) -> Array:
    """Logits of the last token of each prompt."""
    token_ids, lengths = pad(prompts)
    chosen = chains[: len(prompts)]
    batch = Batch({"token_ids": token_ids}, chosen, np.zeros_like(lengths), lengths, lengths[:, None] - 1)
    return Executor(backend, Uncounted()).run(batch)["logits"]


def restored(ranks: Led, epoch: int) -> None:
    """Wait for new ranks and begin with them."""
    ranks.wait_until_up(epoch)
    ranks.backend.renew()


def test_ranks_do_what_one_process_does(ranks: Led, manifest: Manifest) -> None:
    prompts = ([1, 2, 3], [4], [5, 6], [7, 8, 9, 10])
    assert np.array_equal(logits(ranks.backend, *prompts), logits(plain(manifest), *prompts))


def test_error_of_every_rank_is_the_callers_and_nobody_is_lost(ranks: Led) -> None:
    epoch = ranks.supervisor.epoch
    with pytest.raises(ChainError, match="too much for every rank"):
        logits(ranks.backend, [1, ALL_FAIL])
    assert logits(ranks.backend, [1, 2]).shape == (1, 1, 18)
    assert ranks.supervisor.epoch == epoch


@pytest.mark.parametrize(
    ("token", "reason", "seconds"),
    [
        (ONE_FAILS, "diverged", 0.5),
        (ONE_STRAYS, "diverged: it did something else", 0.5),
        (ONE_DRIFTS, "diverged: its outputs", 0.5),
        (ONE_LOSES_IT, "lost the others", 0.5),
        (ONE_DIES, "is gone", 0.5),
        (ONE_HANGS, "did not finish a step in time", DEADLINE_S + 0.5),
    ],
)
def test_rank_that_misbehaves_ends_all_and_new_ones_come(
    token: int, reason: str, seconds: float, ranks: Led, manifest: Manifest
) -> None:
    epoch, started = ranks.supervisor.epoch, time.monotonic()
    with pytest.raises(GroupLostError, match=reason) as told:
        logits(ranks.backend, [1, token])
    assert time.monotonic() - started < seconds + 1.0
    assert told.value.retry_after_s >= 1
    assert ranks.backend.is_lost
    restored(ranks, epoch + 1)
    assert np.array_equal(logits(ranks.backend, [3, 4]), logits(plain(manifest), [3, 4]))


@pytest.mark.parametrize("rank", range(SIZE))
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_idle_rank_that_is_killed_or_stopped_is_noticed_within_two_seconds(
    sent: signal.Signals, rank: int, ranks: Led, manifest: Manifest
) -> None:
    found = ranks.supervisor.ranks
    assert found is not None
    started = time.monotonic()
    os.kill(found.processes[rank], sent)
    while ranks.supervisor.is_up:
        time.sleep(0.01)
    assert time.monotonic() - started < 2.0
    with pytest.raises(GroupLostError, match=f"rank {rank}"):
        ranks.backend.check()
    restored(ranks, found.epoch + 1)
    assert time.monotonic() - started < 10.0
    assert np.array_equal(logits(ranks.backend, [5, 6]), logits(plain(manifest), [5, 6]))


def test_carry_of_earlier_ranks_is_never_used_again(ranks: Led) -> None:
    rows = Rows(np.zeros(1, np.int64), np.asarray([2]))
    before = ranks.backend.embed({"token_ids": np.asarray([[1, 2]])}, rows)
    found = ranks.supervisor.ranks
    assert found is not None
    os.kill(found.processes[0], signal.SIGKILL)
    ranks.wait_until_up(found.epoch + 1)
    with pytest.raises(GroupLostError):  # not even before anybody said that it goes on with new ranks
        ranks.backend.head(before, np.asarray([[1]]))
    ranks.backend.renew()
    with pytest.raises(UnavailableError, match="lost with the ranks"):
        ranks.backend.layer(0, before, rows)


def test_carries_nobody_holds_are_freed_on_ranks(ranks: Led) -> None:
    rows, inputs = Rows(np.zeros(1, np.int64), np.asarray([2])), {"token_ids": np.asarray([[1, 2]])}
    held = [ranks.backend.embed(inputs, rows) for _ in range(20)]
    ranks.backend.stream(held[-1])
    assert ranks.supervisor.num_carries >= 20
    del held
    for _ in range(5):
        logits(ranks.backend, [1, 2, 3])
    assert ranks.supervisor.num_carries <= 2


def test_what_nobody_asks_for_is_freed_by_the_probe(ranks: Led) -> None:
    held = ranks.backend.embed({"token_ids": np.asarray([[1]])}, Rows(np.zeros(1, np.int64), np.asarray([1])))
    ranks.backend.stream(held)
    del held
    ends = time.monotonic() + 8
    while ranks.supervisor.num_carries:
        assert time.monotonic() < ends
        time.sleep(0.05)
    assert ranks.supervisor.all_reduce_s > 0


def test_random_programs_end_whatever_happens(ranks: Led, manifest: Manifest) -> None:
    """Calls in any order, with tokens that fail and rows that do not fit: an answer, an error or a loss, in time."""
    random, kinds = Random(0), set[str]()
    for _ in range(40):
        started = time.monotonic()
        ranks.wait_until_up(1)
        if ranks.backend.is_lost:
            ranks.backend.renew()
        try:
            kinds.add(type(_at_random(ranks.backend, random)).__name__)
        except (BackendError, ChainError, UnavailableError) as error:
            kinds.add(type(error).__name__)
        assert time.monotonic() - started < DEADLINE_S + 10.0
    assert {"ndarray", "BackendError", "ChainError", "GroupLostError"} <= kinds
    ranks.wait_until_up(1)
    if ranks.backend.is_lost:
        ranks.backend.renew()
    assert np.array_equal(logits(ranks.backend, [5, 6]), logits(plain(manifest), [5, 6]))


def _at_random(backend: Backend, random: Random) -> Array:
    length, count = random.randint(1, 4), random.randint(1, 3)
    most = random.choice([10, 10, 10, 17])
    tokens = np.asarray([[random.randint(0, most) for _ in range(length)] for _ in range(count)])
    rows = Rows(np.zeros(count, np.int64), np.full(count, length))
    carry = backend.embed({"token_ids": tokens}, rows)
    for _ in range(random.randint(0, 6)):
        act = random.randint(0, 3)
        if act == 0:
            carry = backend.layer(random.randint(0, 5), carry, rows)  # two of them are not there
        elif act == 1:
            carry = backend.select(carry, np.asarray([random.randint(0, count) for _ in range(count)]))
        elif act == 2:
            part = backend.select(carry, slice(0, 1))
            carry = backend.merge(carry, np.asarray([random.randint(0, count)]), part)
        else:
            carry = backend.join([backend.select(carry, slice(0, 1)) for _ in range(count)])
    return (
        backend.stream(carry)
        if random.random() < 0.3
        else backend.head(carry, np.zeros((count, 1), np.int64))["logits"]
    )


def test_ranks_that_never_come_back_leave_a_broken_model(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervising, "_FIRST_PAUSE_S", 0.01)
    with led(manifest, tmp_path, 2, opening=open_never) as ranks:
        (tmp_path / "broken").touch()
        os.kill(ranks.supervisor.ranks.processes[0], signal.SIGKILL)  # type: ignore[union-attr]
        ends = time.monotonic() + 20
        while not ranks.supervisor.is_broken:
            assert time.monotonic() < ends
            time.sleep(0.02)
        with pytest.raises(GroupLostError, match="broken") as told:
            ranks.backend.check()
        assert told.value.is_final
        assert ranks.supervisor.epoch >= 5


def test_ranks_that_do_not_open_are_an_error_at_once(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    with (
        pytest.raises(BackendError, match=f"rank {CULPRIT} is gone|did not open"),
        led(manifest, tmp_path, 2, opening=open_never),
    ):
        pass


def test_ranks_end_in_order(manifest: Manifest, tmp_path: Path) -> None:
    with led(manifest, tmp_path, 2) as ranks:
        logits(ranks.backend, [1, 2])
    assert ranks.launcher.codes == [0, 0]


def test_strangers_are_turned_away_while_ranks_serve(ranks: Led, manifest: Manifest) -> None:
    epoch = ranks.supervisor.epoch
    for garbage in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 5000, b"\x44\x00\x00\x00" + b"x" * 68):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.settimeout(10)
            stranger.connect(ranks.address.path)
            stranger.sendall(garbage)
            stranger.shutdown(socket.SHUT_WR)
            said = b""
            with suppress(ConnectionResetError):
                while piece := stranger.recv(4096):
                    said += piece
            assert len(said) < 100  # a nonce, and nothing else
    assert np.array_equal(logits(ranks.backend, [5, 6]), logits(plain(manifest), [5, 6]))
    assert ranks.supervisor.epoch == epoch

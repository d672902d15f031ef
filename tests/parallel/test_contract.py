"""The laws every backend keeps, kept by each rank of a group: `tests.contracts.test_backend` says what they are."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from models.artifact import read_manifest
from models.chain import Chain
from models.checkpoint import load_checkpoint
from models.errors import BackendError
from models.lm.model import LanguageModel
from models.parallel.group import Alone, Group
from service.backends.parts import LanguageBackend
from service.backends.protocol import Array, Rows
from service.backends.sharded import open_sharded
from service.engine.executor import Executor, pad
from tests.contracts.test_backend import (
    EMBEDDING_TOLERANCE,
    MIXED,
    NUM_PAGES,
    PAGE_SIZE,
    PROMPTS,
    Calls,
    assert_decoding_recomputes,
    assert_reported,
    assert_rows_travel,
    assert_same_answer,
    assert_same_bits,
    difference,
    plain_embedding,
    run,
    scattered_pages,
    text_batch,
)
from tests.parallel.ranks import Ranks, ranks

TOLERANCE = 5e-5


@pytest.fixture(scope="module", params=[2, 4], ids="ranks-{}".format)
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with ranks(request.param, tmp_path_factory.mktemp("ranks") / "store") as started:
        yield started


def opened(group: Group, repository: Path, num_pages: int = 0) -> LanguageBackend:
    directory = repository / "tinylm" / "1"
    return open_sharded(read_manifest(directory), directory, group, num_pages, PAGE_SIZE)


class Reference:
    """Logits [S, V] of a plain loop without any cache, in one process."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = load_checkpoint(checkpoint)

    def __call__(self, token_ids: Sequence[int], chain: Chain) -> Array:
        with torch.inference_mode():
            return self.model.along({"token_ids": torch.tensor([token_ids])}, chain)[0].numpy()


def test_laws_hold_on_every_rank(group: Ranks, tiny_repository: Path, tiny_lm_checkpoint: Path) -> None:
    group.run(keep_laws, tiny_repository, tiny_lm_checkpoint)


def keep_laws(group: Group, repository: Path, checkpoint: Path) -> None:
    reference, backend = Reference(checkpoint), opened(group, repository, NUM_PAGES)
    together = run(backend, text_batch(PROMPTS, MIXED))
    for row, (prompt, chain) in enumerate(zip(PROMPTS, MIXED, strict=True)):
        assert_same_answer(together[row, : len(prompt)], reference(prompt, chain), TOLERANCE)
        alone = run(backend, text_batch([prompt], (chain,)))[0]
        assert_same_answer(together[row, : len(prompt)], alone, TOLERANCE)
    assert_same_bits(backend, text_batch(PROMPTS, MIXED))
    token_ids, lengths = pad(PROMPTS[:4])
    rows = Rows(np.zeros_like(lengths), lengths)
    assert_rows_travel(backend, backend.embed({"token_ids": token_ids}, rows), rows)
    assert_rows_travel(backend, backend.layer(0, backend.embed({"token_ids": token_ids}, rows), rows), rows)
    for seed in range(2):  # the second finds what the first left in its pages
        assert_decoding_recomputes(backend, reference, TOLERANCE, scattered_pages(MIXED, seed), seed)


def test_embeddings_and_reports_are_those_of_one_process(
    group: Ranks, tiny_repository: Path, tiny_lm_checkpoint: Path
) -> None:
    model = load_checkpoint(tiny_lm_checkpoint)
    assert isinstance(model, LanguageModel)
    wanted = [plain_embedding(model, ids, chain) for ids, chain in zip(PROMPTS, MIXED, strict=True)]
    for streams in group.run(read_streams, tiny_repository):
        for row, ids in enumerate(PROMPTS):
            mean = streams[row, : len(ids)].mean(axis=0)
            assert difference(mean / np.linalg.norm(mean), wanted[row]) <= EMBEDDING_TOLERANCE


def read_streams(group: Group, repository: Path) -> Array:
    backend = opened(group, repository)
    return Executor(backend, Calls()).stream(text_batch(PROMPTS, MIXED))


def test_layers_reported_are_layers_executed(tiny_repository: Path) -> None:
    executed = Calls()
    backend = opened(Alone(), tiny_repository)
    layer = backend.layer

    def counting(index: int, carry: object, rows: Rows | None = None) -> object:
        assert rows is not None
        executed.count_layer_call(index, len(rows.starts), 0)
        return layer(index, carry, rows)

    backend.layer = counting  # type: ignore[method-assign]
    assert_reported(backend, text_batch(PROMPTS, MIXED), [len(prompt) for prompt in PROMPTS], executed)


def test_backend_says_what_it_holds_and_gives_it_back(tiny_repository: Path) -> None:
    backend = opened(Alone(), tiny_repository, num_pages=4)
    assert (backend.num_layers, backend.num_pages, backend.page_size) == (3, 4, PAGE_SIZE)
    backend.close()
    with pytest.raises(BackendError, match="unloaded"):
        run(backend, text_batch(PROMPTS, MIXED))


def test_what_is_no_language_model_is_refused(tiny_repository: Path) -> None:
    directory = tiny_repository / "tinymlp" / "1"
    with pytest.raises(BackendError, match=r"has the kind 'tensor'.* serve a causal-lm in the form safetensors"):
        open_sharded(read_manifest(directory), directory, Alone())


def test_more_ranks_than_heads_are_refused(tiny_repository: Path) -> None:
    with pytest.raises(BackendError, match=r"8 ranks do not divide the model's 4 attention heads; use one of \[1, 2"):
        opened(Alone(size=8), tiny_repository)

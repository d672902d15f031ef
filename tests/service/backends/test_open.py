"""Which backend serves an artifact, and how much memory it gets."""

from collections.abc import Callable
from pathlib import Path

import pytest

from models.artifact import FileRecord, Form, Format, LanguageSpec, LayersSpec, Manifest
from models.errors import BackendError
from service.backends.kv import page_bytes
from service.backends.open import (
    BackendName,
    choose_backend,
    files_of,
    num_pages_within,
    open_backend,
    refuse_both_runtimes,
    threads_for,
)

FORM = Form(whole="whole", tolerance=1e-4)
LANGUAGE = LanguageSpec(
    vocab_size=9, max_length=10, num_kv_heads=1, head_size=4, eos_token_ids=(), tokenizer="tokenizer.json"
)
PAGE = page_bytes(LANGUAGE, 4)


def manifest(*formats: Format, language: LanguageSpec | None = LANGUAGE) -> Manifest:
    return Manifest(
        name="model",
        version="1",
        kind="causal-lm" if language else "tensor",
        inputs=(),
        outputs=(),
        layers=LayersSpec(count=4, residual_form="standard", cost=(1,) * 4),
        language=language,
        forms={format: FORM for format in formats},
        files={},
    )


@pytest.mark.parametrize(
    ("formats", "name", "chosen"),
    [
        (("onnx", "torchscript", "safetensors"), "auto", "onnx"),
        (("safetensors", "torchscript"), "auto", "torchscript"),
        (("safetensors",), "auto", "eager"),
        (("onnx", "safetensors"), "eager", "eager"),
        (("onnx", "torchscript"), "torchscript", "torchscript"),
        (("pt2-int8", "onnx-bf16"), "auto", "onnx-bf16"),
        (("onnx", "pt2-int4"), "pt2-int4", "pt2-int4"),
        ((), "fake", "fake"),
    ],
)
def test_fastest_runtime_with_files_is_chosen_unless_one_is_named(
    formats: tuple[Format, ...], name: BackendName, chosen: BackendName
) -> None:
    assert choose_backend(manifest(*formats), name) == chosen


@pytest.mark.parametrize(
    ("formats", "name"), [(("torchscript",), "onnx"), (("onnx",), "eager"), (("onnx",), "torchscript"), ((), "auto")]
)
def test_backend_without_files_is_refused(formats: tuple[Format, ...], name: BackendName) -> None:
    with pytest.raises(BackendError, match=f"has the forms .*none for backend '{name}'; export it again"):
        open_backend(manifest(*formats), Path(), name)


@pytest.mark.parametrize(
    ("max_rows", "max_bytes", "num_pages"),
    [
        (3, 100 * PAGE, 36),  # rows times layers times columns of 4 tokens in 10
        (3, 30 * PAGE + 1, 30),  # as far as the memory goes
        (1, 12 * PAGE, 12),  # one sequence of full length
    ],
)
def test_pages_are_for_all_rows_as_far_as_memory_goes(max_rows: int, max_bytes: int, num_pages: int) -> None:
    assert num_pages_within(manifest("onnx"), max_rows, max_bytes, page_size=4) == num_pages


def test_memory_too_small_for_one_sequence_of_full_length_is_refused() -> None:
    with pytest.raises(BackendError, match=rf"12 pages of {PAGE} bytes .* hold 11; raise FATHOM_KV_BYTES"):
        num_pages_within(manifest("onnx"), 3, 12 * PAGE - 1, page_size=4)


def test_model_without_a_cache_needs_no_pages() -> None:
    assert num_pages_within(manifest("onnx", language=None), 3, 0, page_size=4) == 0


@pytest.mark.parametrize(
    ("files", "form", "threads"),
    [
        ({"a": 5 << 20, "b": 3 << 20}, Form(embed="e", layers=("a", "b"), head="h", whole="w", tolerance=1e-4), 8),
        ({"a": 5 << 20, "b": 1 << 20}, Form(embed="e", layers=("a", "b"), head="h", whole="w", tolerance=1e-4), 1),
        ({"w": 8 << 20}, Form(whole="w", tolerance=1e-4), 8),
        ({"w": 7 << 20}, Form(whole="w", tolerance=1e-4), 1),
    ],
)
def test_large_layers_get_all_cores_and_small_ones_a_thread(files: dict[str, int], form: Form, threads: int) -> None:
    records = {name: FileRecord(sha256="0" * 64, size_bytes=size) for name, size in files.items()}
    layers = LayersSpec(count=2, residual_form="standard", cost=(1, 1))
    model = manifest().model_copy(update={"forms": {"onnx": form}, "files": records, "layers": layers})
    assert threads_for(model, "onnx", num_cores=8) == threads
    assert threads_for(model, "fake", num_cores=8) == 1


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a distribution look installed."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str) -> None:
        folder = tmp_path / f"{name.replace('-', '_')}-9.9.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")

    return make


def test_both_runtime_wheels_are_refused(install: Callable[[str], None]) -> None:
    install("onnxruntime")
    install("onnxruntime-gpu")
    with pytest.raises(BackendError, match=r"both installed.*uninstall both"):
        refuse_both_runtimes()


def test_leftovers_of_a_removed_package_do_not_matter(install: Callable[[str], None], tmp_path: Path) -> None:
    (tmp_path / "broken-1.0.dist-info").mkdir()
    refuse_both_runtimes()


PARTS = Form(embed="embed", layers=("0", "1", "2", "3"), head="head", whole="whole", tolerance=1e-4)


@pytest.mark.parametrize(
    ("layer_bytes", "data_bytes", "language", "is_opened"),
    [
        (1 << 20, 0, None, True),
        (5 << 20, 0, None, False),
        (1 << 20, 17 << 20, None, False),
        (1 << 20, 0, LANGUAGE, False),
    ],
)
def test_whole_graph_of_small_tensor_models_is_opened_beside_the_layers(
    layer_bytes: int, data_bytes: int, language: LanguageSpec | None, is_opened: bool
) -> None:
    sizes = {**dict.fromkeys("0123", layer_bytes), **dict.fromkeys(("embed", "head", "whole"), 1 << 10)}
    if data_bytes:  # beside a layer; the whole graph refers to it
        sizes["0.data"] = data_bytes
    files = {name: FileRecord(sha256="0" * 64, size_bytes=size) for name, size in sizes.items()}
    given = manifest("onnx", language=language).model_copy(update={"forms": {"onnx": PARTS}, "files": files})
    assert ("whole" in files_of(given, "onnx")) == is_opened
    assert files_of(given, "onnx") >= sizes.keys() - {"whole"}

"""Memory and time to bring a large model in, and to start it.

Measured: `fathom import` of a Llama of random weights of about 1 GB in shards, stored as float32 and as bfloat16, each
in a process of its own: its largest resident memory against the weights it keeps (float32, however they are stored),
the interpreter with torch subtracted. Then the start of an ONNX graph of 500 MB: manifest, hashes and backend against
onnxruntime's own session on the same file, each in a process of its own. And what a second version of a model takes
that differs in one of twelve layers, as ONNX layer by layer, with and without FATHOM_PREPACK. Left out: reading from a
slow disk; the files are in the page cache. More than 1.3 times the weights kept, 1.5 times the session, or most of a
model for its second version, would mean that something is copied that need not be.
"""

import resource
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from report import report

WIDTH, INNER, LAYERS = 1024, 4096, 14
SHARD = "120MB"


def checkpoint_in(folder: Path, dtype: str) -> int:
    """Write the checkpoint; the bytes of its weights in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from training.arith import tokenizer

    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=128,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size=SHARD)
    tokenizer.save(folder, 128)
    return 4 * sum(parameter.numel() for parameter in model.parameters())


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def import_one(checkpoint: Path, repository: Path) -> tuple[int, float]:
    """Memory beyond the libraries, and seconds, of one import."""
    from exporters.export import export_checkpoint

    before, started = peak_bytes(), time.perf_counter()
    export_checkpoint(checkpoint, repository, ("safetensors",), "large", overwrite=True)
    return peak_bytes() - before, time.perf_counter() - started


def in_its_own_process(do: Callable[..., Any], *arguments: object) -> Any:
    with get_context("spawn").Pool(1) as process:
        return process.apply(do, arguments)


def imports(folder: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for dtype in ("float32", "bfloat16"):
        checkpoint = folder / dtype
        kept = in_its_own_process(checkpoint_in, checkpoint, dtype)
        peak, seconds = in_its_own_process(import_one, checkpoint, folder / "repository")
        rows.append({"what": f"import, stored as {dtype}", "MB": peak / 1e6, "seconds": seconds, "ratio": peak / kept})
    return rows


def graph_in(path: Path) -> None:
    """A chain of 30 products with weights of 16.8 MB each."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random, size = np.random.default_rng(0), 2048
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name in ("x0", "x30")]
    weights = [numpy_helper.from_array(random.standard_normal((size, size), np.float32), f"w{i}") for i in range(30)]
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(30)]
    graph = helper.make_graph(nodes, "products", ends[:1], ends[1:], weights)
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))


def adopt_one(graph: Path, repository: Path) -> None:
    from exporters.adopt import adopt_file

    adopt_file(graph, repository, "products", overwrite=True)


def session(graph: Path) -> float:
    """Seconds for onnxruntime's own session, one thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    started = time.perf_counter()
    ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return time.perf_counter() - started


def opened(version: Path) -> float:
    """Seconds for what a server does: read the manifest, check every hash, open the model."""
    import onnxruntime  # noqa: F401, as `session` has it imported, too

    from models.artifact import read_manifest
    from service.backends.open import open_backend

    started = time.perf_counter()
    open_backend(read_manifest(version), version, "onnx", num_threads=1)
    return time.perf_counter() - started


def starts(folder: Path) -> list[dict[str, object]]:
    """The better of three each, in turns."""
    graph = folder / "products.onnx"
    in_its_own_process(graph_in, graph)
    in_its_own_process(adopt_one, graph, folder / "repository")
    version = folder / "repository" / "products" / "1"
    seconds = [(in_its_own_process(session, graph), in_its_own_process(opened, version)) for _ in range(3)]
    raw, ours = (min(column) for column in zip(*seconds, strict=True))
    size = graph.stat().st_size / 1e6
    return [
        {"what": "onnxruntime's own session", "MB": size, "seconds": raw, "ratio": 1.0},
        {"what": "the same model opened", "MB": size, "seconds": ours, "ratio": ours / raw},
    ]


def two_versions_in(folder: Path) -> int:
    """Two versions of a Llama that differ in one layer; the bytes of the weights of one."""
    from exporters.export import export_checkpoint
    from models.lm.config import LMConfig
    from models.lm.model import LanguageModel
    from models.lm.weights import save
    from training.arith import tokenizer

    torch.manual_seed(0)
    model = LanguageModel(LMConfig(1024, 768, 2048, 12, 12, 12, 128))
    for version in ("1", "2"):
        model.layers[3].get_parameter("mlp.up_proj.weight").data.mul_(2.0)
        save(model, folder / version)
        tokenizer.save(folder / version, 128)
        export_checkpoint(folder / version, folder / "repository", ("onnx",), "mine", version)
    return 4 * sum(parameter.numel() for parameter in model.parameters())


def resident(versions: list[Path], prepack: bool) -> int:
    """Memory beyond the libraries with these versions open and run once, a page mapped twice counted once."""
    import numpy as np
    import onnxruntime  # noqa: F401, counted as a library

    from models.artifact import read_manifest
    from service.backends.open import open_backend
    from service.backends.protocol import Rows

    def now() -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))

    before, kept = now(), []
    for version in versions:
        backend = open_backend(read_manifest(version), version, "onnx", num_threads=1, num_pages=16, prepack=prepack)
        rows = Rows(np.zeros(1, np.int64), np.ones(1, np.int64))
        carry = backend.embed({"token_ids": np.ones((1, 1), np.int64)}, rows)
        for layer in range(12):
            carry = backend.layer(layer, carry, rows)
        backend.head(carry, np.zeros((1, 1), np.int64))
        kept.append(backend)
    return now() - before


def versions(folder: Path) -> list[dict[str, object]]:
    """What a second version takes, with weights laid out by the runtime and mapped."""
    size = in_its_own_process(two_versions_in, folder)
    both = [folder / "repository" / "mine" / version for version in ("1", "2")]
    rows: list[dict[str, object]] = []
    for name, prepack in (("laid out", True), ("mapped", False)):
        one, two = (in_its_own_process(resident, both[:count], prepack) for count in (1, 2))
        rows.append({"what": f"one version, {name}", "MB": one / 1e6, "seconds": None, "ratio": one / size})
        rows.append(
            {
                "what": f"a second beside it, {name}",
                "MB": (two - one) / 1e6,
                "seconds": None,
                "ratio": (two - one) / size,
            }
        )
    return rows


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        rows = [*imports(Path(folder)), *starts(Path(folder)), *versions(Path(folder))]
        report("Bringing a large model in", rows)

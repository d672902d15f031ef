"""What no server could beat: the bare runtime on the same rows in this process, and reading the weights once a token.

Both on as many threads as the server uses. Knows no HTTP.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.artifact import Manifest, find_version, read_manifest
from models.chain import Chain
from service.backends.open import choose_backend, open_backend
from service.backends.protocol import Array, Backend
from service.bench.mix import ChainMix
from service.bench.target import Shape, Target
from service.settings import Settings

_SECONDS = 1.0
_COPIED_BYTES = 256 << 20  # far beyond any cache
_COPIES = 5


@dataclass(frozen=True, slots=True)
class Limit:
    """The bare runtime for one request of a model without text, or the shortest step of a language model.

    step_s: `step_bytes`, the weights that a token on the mean chain reads, over the measured `bytes_per_s`. However
    many sequences make the step together, each gets one token from it.
    """

    request_s: float | None = None
    request_cpu_s: float | None = None
    step_s: float | None = None
    step_bytes: float | None = None
    bytes_per_s: float | None = None

    def requests_per_s(self) -> float | None:
        return 1 / self.request_s if self.request_s else None

    def tokens_per_s(self, sequences: int) -> float | None:
        return sequences / self.step_s if self.step_s else None


def measure(target: Target, mix: ChainMix, shape: Shape, settings: Settings, seed: int) -> Limit:
    """The limit for these requests, from the files of the model in the repository of `settings`."""
    directory = find_version(settings.folder, target.model, str(target.info["version"]))
    manifest = read_manifest(directory)
    if manifest.language is None:
        return _of_rows(manifest, directory, mix, target.samples(shape, seed), settings)
    if (weights := visited_bytes(manifest, mix, settings)) is None:
        return Limit()
    rate = copied_bytes_per_s()
    return Limit(step_s=weights / rate, step_bytes=weights, bytes_per_s=rate)


def visited_bytes(manifest: Manifest, mix: ChainMix, settings: Settings) -> float | None:
    """Weights read for one token: the layers of the mean chain and the head. None where parts share one file."""
    chosen = choose_backend(manifest, settings.backend)
    form = manifest.forms.get("torchscript" if chosen == "torchscript" else "onnx")
    if chosen not in ("onnx", "torchscript") or form is None or form.head is None or not form.layers:
        return None
    sizes = [manifest.files[name].size_bytes for name in form.layers]
    chains = mix.layers(manifest.num_layers)
    return manifest.files[form.head].size_bytes + sum(
        share * sum(sizes[layer] for layer in chain.layers) for chain, share in chains
    )


def copied_bytes_per_s() -> float:
    """Memory bandwidth of a copy by one thread: bytes read and bytes written, the best of a few."""
    source = np.ones(_COPIED_BYTES, np.uint8)
    target = np.empty_like(source)
    best = float("inf")
    for _ in range(_COPIES):
        started = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - started)
    return 2 * _COPIED_BYTES / best


def _of_rows(
    manifest: Manifest, directory: Path, mix: ChainMix, inputs: Mapping[str, Array], settings: Settings
) -> Limit:
    backend = open_backend(manifest, directory, settings.backend, settings.device, settings.num_threads)
    try:
        spent = [(share, *_timed(backend, chain, inputs)) for chain, share in mix.layers(manifest.num_layers)]
    finally:
        backend.close()
    return Limit(sum(share * wall for share, wall, _ in spent), sum(share * cpu for share, _, cpu in spent))


def _timed(backend: Backend, chain: Chain, inputs: Mapping[str, Array]) -> tuple[float, float]:
    """Seconds and CPU seconds of one pass."""

    def run() -> None:
        carry = backend.embed(inputs)
        for layer in chain.layers:
            carry = backend.layer(layer, carry)
        backend.head(carry)

    run()
    count, started, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() < started + _SECONDS:
        run()
        count += 1
    return (time.perf_counter() - started) / count, (time.process_time() - cpu) / count

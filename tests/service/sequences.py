"""Repositories of recurrent models on arithmetic: a manifest is all there is of them."""

from pathlib import Path

from models.artifact import LayersSpec, Manifest, SequenceSpec, TensorSpec

MAX_CHUNK, MAX_TRAINED, NUM_LAYERS = 4, 32, 3
# Bytes of what a visit is left in: a memory of two by three numbers.
STATE_BYTES = 2 * 3 * 4


def manifest(name: str, version: str = "1", vocab_size: int = 0, max_chunk: int = MAX_CHUNK) -> Manifest:
    """Two numbers a step, or a token id; five classes at each."""
    steps = TensorSpec(name="steps", datatype="FP32", shape=(-1, -1, 2))
    tokens = TensorSpec(name="token_ids", datatype="INT64", shape=(-1, -1))
    return Manifest(
        name=name,
        version=version,
        kind="sequence",
        inputs=(tokens if vocab_size else steps,),
        outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, -1, 5)),),
        layers=LayersSpec(count=NUM_LAYERS, residual_form="standard", cost=(1,) * NUM_LAYERS),
        sequence=SequenceSpec(
            max_chunk=max_chunk,
            max_trained=MAX_TRAINED,
            vocab_size=vocab_size,
            state=(TensorSpec(name="memory", datatype="FP32", shape=(-1, 2, 3)),),
        ),
        forms={},
        files={},
    )


def rows(name: str) -> Manifest:
    """A model without state: two numbers, five classes."""
    return manifest(name).model_copy(
        update={
            "kind": "tensor",
            "sequence": None,
            "inputs": (TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),),
            "outputs": (TensorSpec(name="logits", datatype="FP32", shape=(-1, 5)),),
        }
    )


def publish(repository: Path, *manifests: Manifest) -> Path:
    """The repository with these models in it."""
    for one in manifests:
        folder = repository / one.name / one.version
        folder.mkdir(parents=True)
        one.write(folder)
    return repository


def steps(count: int, first: int = 0) -> list[list[int]]:
    """So many steps, no two alike."""
    return [[(7 * place + 3) % 101, place % 13] for place in range(first, first + count)]

"""Threads of sessions. The runtime's pool is the process's, so that each test has a process of its own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
CODE = """
import sys
from pathlib import Path
import numpy as np
from models.artifact import read_manifest
from service.backends.open import open_backend
from service.backends.protocol import Rows

directory = Path(sys.argv[1])
token_ids, starts, lengths = np.asarray([[3, 1, 4, 1, 5]]), np.zeros(1, np.int64), np.full(1, 5)
answers = []
for num_threads in (1, 2, 3, 1):  # large models among small ones, in one server
    backend = open_backend(read_manifest(directory), directory, "onnx", num_threads=num_threads)
    rows = Rows(starts, lengths)
    carry = backend.embed({"token_ids": token_ids}, rows)
    for layer in (0, 1, 1, 2):
        carry = backend.layer(layer, carry, rows)
    answers.append(backend.head(carry, np.arange(5)[None])["logits"])
print(max(float(np.abs(answer - answers[0]).max()) for answer in answers))
"""


def test_sessions_of_one_and_of_several_threads_live_together_and_answer_the_same(tiny_repository: Path) -> None:
    command = [sys.executable, "-c", CODE, str(tiny_repository / "tinylm" / "1")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 5e-5

"""Ranks on two nodes, started by torchrun: what holds for one machine holds for two, the network between included."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.artifact import read_manifest
from models.chain import Chain
from models.checkpoint import load_checkpoint
from models.lm.tokenizer import Tokenizer
from tests.conftest import TINY_LM_MAX_LENGTH
from training.arith.tokenizer import END_ID

NODES = Path(__file__).with_name("nodes.py")
APART = ("unshare", "--user", "--map-root-user", "--net", "--mount", "--kill-child")


def can_be_apart() -> bool:
    """Whether this machine lets us make networks of our own."""
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return False
    return subprocess.run((*APART, "true"), capture_output=True, check=False).returncode == 0


def greedily(directory: Path) -> str:
    """What the plain model says, token by token, nothing cached."""
    form = read_manifest(directory).forms["safetensors"]
    model, tokenizer = load_checkpoint((directory / str(form.whole)).parent), Tokenizer(directory / "tokenizer.json")
    prompt, said = tokenizer.encode("12+34="), list[int]()
    while len(prompt) + len(said) < TINY_LM_MAX_LENGTH and END_ID not in said:
        with torch.inference_mode():
            logits = model.along({"token_ids": torch.tensor([[*prompt, *said]])}, Chain.full(3))
        said.append(int(logits[0, -1].argmax()))
    return tokenizer.decode(tuple(said))


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--tensor-parallel", "--pipeline-parallel"])
def test_ranks_of_two_nodes_serve_and_come_back(option: str, tiny_repository: Path, tmp_path: Path) -> None:
    where = "namespaces" if can_be_apart() else "addresses"
    command = (*(APART if where == "namespaces" else ()), sys.executable, str(NODES), str(tiny_repository))
    done = subprocess.run((*command, str(tmp_path), where, option), capture_output=True, text=True, check=False)
    logs = "\n".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert done.returncode == 0, done.stderr + logs
    told = json.loads(done.stdout)
    assert told["up_s"] < 120, logs
    assert told["first"] == told["second"] == told["third"] == [200, greedily(tiny_repository / "tinylm" / "1")]
    assert told["rank_lost_s"] < 2
    assert (told["meanwhile"][0], int(told["meanwhile"][1]) >= 1) == (503, True)
    assert told["rank_back_s"] < 60, logs
    assert told["node_lost_s"] < 2
    assert told["node_back_s"] < 120, logs
    assert told["code"] == 0, logs

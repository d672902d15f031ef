"""PolyCom in decoders (S102): named in config.json, in every layer of its own, exported, and served token by token."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
import uvicorn
from safetensors.torch import load_file, save_file

from exporters.export import export_checkpoint
from models.chain import Chain
from models.checkpoint import load_checkpoint
from models.errors import ArtifactError, BackendError
from models.lm import weights
from models.lm.architectures import read_config
from models.lm.config import ExpertsConfig, LMConfig
from models.lm.mlp import MLP, Experts, activation
from models.lm.model import LanguageModel
from models.lm.residual import Residual
from models.parallel.split import refuse
from service.app import create_app
from service.server import Server, listen
from service.settings import Settings
from tests.contracts.decoders import Decoder, make
from training.arith import tokenizer

NAMES = ("poly_norm", "poly_relu")
NEW_TOKENS = 12


def decoder(name: str) -> LanguageModel:
    """Three layers with random weights; each activation has weights of its own."""
    config = LMConfig(
        vocab_size=len(tokenizer.CHARACTERS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=tokenizer.PAD_ID,
        activation=name,
    )
    torch.manual_seed(0)
    model = LanguageModel(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("learned") / "polynorm"
    weights.save(decoder("poly_norm"), directory)
    tokenizer.save(directory, 64)
    return directory


@pytest.fixture(scope="module")
def client(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    repository = tmp_path_factory.mktemp("repository")
    assert export_checkpoint(checkpoint, repository, ["onnx"]).refused == {}
    app = create_app(Settings(repository=repository, backend="onnx", memory="sqlite://"))
    listener = listen("127.0.0.1", 0)
    server = Server(uvicorn.Config(app, log_config=None, access_log=False), app.state.lifecycle)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with httpx.Client(base_url="http://{}:{}".format(*listener.getsockname()), timeout=60) as opened:
            while opened.get("/health/ready").status_code != 200:
                threading.Event().wait(0.05)
            yield opened
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_comes_back_with_its_activations(name: str, tmp_path: Path) -> None:
    model, ids = decoder(name), torch.arange(10)[None]
    weights.save(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["hidden_act"] == name
    assert "model.layers.2.mlp.act_fn.weight" in load_file(tmp_path / "model.safetensors")
    back = load_checkpoint(tmp_path)
    assert torch.equal(back(ids), model(ids))
    assert len({tuple(layer.mlp.act.weight.tolist()) for layer in back.layers}) == 3


@pytest.mark.parametrize("chain", ["0-2", "0,1,1,2"])
def test_served_tokens_are_those_of_a_plain_loop(chain: str, checkpoint: Path, client: httpx.Client) -> None:
    body = {"model": "polynorm", "inputs": ["12+30="], "chain": chain}
    response = client.post("/predict", json={**body, "parameters": {"max_new_tokens": NEW_TOKENS}})
    assert response.status_code == 200, response.text
    (said,) = response.json()["outputs"]
    model, ids = load_checkpoint(checkpoint), [tokenizer.IDS[one] for one in "12+30="]
    for _ in range(NEW_TOKENS):
        with torch.inference_mode():
            logits = model.along({"token_ids": torch.tensor([ids])}, Chain.parse(chain))
        ids.append(int(logits[0, -1].argmax()))
    assert said["token_ids"] == ids[6:]


def test_mlps_without_a_gate_have_them_too(tmp_path: Path) -> None:
    make(Decoder("gpt-2", "gpt2", {"num_key_value_heads": 4}), tmp_path)
    raw, tensors = json.loads((tmp_path / "config.json").read_text()), load_file(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**raw, "activation_function": "poly_relu"}))
    for layer in range(3):
        tensors[f"transformer.h.{layer}.mlp.act.weight"] = torch.tensor([0.0, 0.0, 1.0])  # a_3, a_2, a_1: relu
        tensors[f"transformer.h.{layer}.mlp.act.bias"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    learned, ids = load_checkpoint(tmp_path), torch.arange(10)[None]
    assert isinstance(learned.layers[0].mlp, MLP)
    for layer in range(3):
        del tensors[f"transformer.h.{layer}.mlp.act.weight"], tensors[f"transformer.h.{layer}.mlp.act.bias"]
    (tmp_path / "config.json").write_text(json.dumps({**raw, "activation_function": "relu"}))
    save_file(tensors, tmp_path / "model.safetensors")
    assert torch.allclose(learned(ids), load_checkpoint(tmp_path)(ids), atol=1e-5)


def test_experts_one_by_one_are_all_experts_at_once_with_poly_norm() -> None:
    config = LMConfig(9, 16, 24, 1, 2, 2, 32, experts=ExpertsConfig(6, 2, 10, (0,)), activation="poly_norm")
    torch.manual_seed(0)
    experts = Experts(config, config.experts)  # type: ignore[arg-type]
    x = torch.randn(2, 7, 16)
    with torch.inference_mode():
        shares, chosen = torch.softmax(experts.gate(x), dim=-1).topk(2, dim=-1)
        assert torch.allclose(experts(x), experts.dense(x, shares, chosen), atol=1e-5)


def test_a_checkpoint_that_lacks_the_weights_of_its_activation_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["model.layers.1.mlp.act_fn.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    with pytest.raises(ArtifactError, match=r"missing \['model.layers.1.mlp.act_fn.bias'\]"):
        load_checkpoint(tmp_path)


def test_what_norms_over_all_neurons_is_not_spread_over_ranks(checkpoint: Path) -> None:
    refuse(decoder("poly_relu").config, 2)
    with pytest.raises(BackendError, match="'poly_norm' norms all neurons of a token together and is"):
        refuse(decoder("poly_norm").config, 2)
    raw = json.loads((checkpoint / "config.json").read_text())
    with pytest.raises(ArtifactError, match="is not defined for an activation normed over all neurons"):
        read_config({**raw, "residual": Residual("desync", num_ranks=2).said()}, "llama")


def test_where_an_activation_has_no_weights_learned_ones_are_refused() -> None:
    with pytest.raises(ArtifactError, match="'poly_norm'"):
        activation("poly_norm")  # classifiers and encoders

"""The hourglass: what is trained of it, and how narrow a block is."""

import torch

from models.mixers.hourglass import Hourglass, HourglassConfig

CONFIG = HourglassConfig(hidden_size=24, bottleneck=3, num_layers=2)


def test_the_projection_in_is_never_trained() -> None:
    torch.manual_seed(0)
    model = Hourglass(CONFIG)
    before = model.embed.weight.clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(8, 64)).square().sum().backward()
    optimizer.step()
    assert not model.embed.weight.requires_grad
    assert torch.equal(model.embed.weight, before)
    assert {name for name, _ in model.named_parameters() if name.startswith("embed")} == set()
    assert "embed.weight" in model.state_dict()  # the matrix that was drawn is part of the weights


def test_a_block_is_narrow() -> None:
    torch.manual_seed(0)
    block = Hourglass(CONFIG).layers[0].double()
    hidden = torch.randn(200, 24, dtype=torch.float64)
    changes = (block(hidden) - hidden - block.widen.bias).detach()
    values = torch.linalg.svdvals(changes)
    assert values[2] > 1e-2 * values[0]
    assert values[3] < 1e-12 * values[0]


def test_the_projection_keeps_lengths_in_expectation() -> None:
    torch.manual_seed(0)
    embed = Hourglass(HourglassConfig(hidden_size=4096)).embed
    features = 8 + 8 * torch.randn(50, 64)
    ratio = embed(features).square().mean(1) / ((features - 8) * 0.125).square().mean(1)
    torch.testing.assert_close(ratio, torch.ones(50), atol=0.15, rtol=0)

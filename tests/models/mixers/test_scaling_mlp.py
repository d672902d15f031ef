"""B-MLP: wide in the middle, and without any idea of an image."""

import torch

from models.mixers.scaling_mlp import InvertedBottleneck, ScalingMLP, ScalingMLPConfig


def test_a_block_changes_the_stream_along_every_direction() -> None:
    torch.manual_seed(0)
    block = InvertedBottleneck(ScalingMLPConfig(hidden_size=12)).double()
    assert block.mlp.up.out_features == 4 * 12
    hidden = torch.randn(200, 12, dtype=torch.float64)
    values = torch.linalg.svdvals((block(hidden) - hidden - block.mlp.down.bias).detach())
    assert values[-1] > 1e-2 * values[0]


def test_pixels_in_another_order_make_no_difference() -> None:
    """A network for moved pixels is this one with the columns of its first map moved: it starts and learns alike."""
    torch.manual_seed(0)
    model, other = (ScalingMLP(ScalingMLPConfig(num_layers=2)) for _ in range(2))
    order = torch.randperm(64)
    other.load_state_dict(model.state_dict())
    other.embed.linear.weight.data = model.embed.linear.weight.data[:, order].clone()
    pixels, targets = torch.rand(32, 64) * 16, torch.randint(10, (32,))
    for network, given in ((model, pixels), (other, pixels[:, order])):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(given), targets).backward()
            optimizer.step()
    torch.testing.assert_close(other(pixels[:, order]), model(pixels), atol=1e-4, rtol=0)
    torch.testing.assert_close(other.embed.linear.weight, model.embed.linear.weight[:, order], atol=1e-5, rtol=0)

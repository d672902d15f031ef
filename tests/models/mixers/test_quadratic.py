"""Quadratic neurons: their equation, what one can compute, and how ReLinear starts and slows them."""

import torch

from models.mixers.quadratic import Conventional, Quadratic, QuadraticConfig, QuadraticLinear, quadratic_parameters
from training.recipes import find_recipe


def test_a_neuron_is_its_equation() -> None:
    torch.manual_seed(0)
    neurons, x = QuadraticLinear(3, 2, relinear=False), torch.randn(5, 3)
    for row in range(5):
        for unit in range(2):
            r, g, b = (
                sum(layer.weight[unit, i] * x[row, i] ** power for i in range(3)) + layer.bias[unit]
                for layer, power in ((neurons.linear, 1), (neurons.gate, 1), (neurons.square, 2))
            )
            torch.testing.assert_close(neurons(x)[row, unit], r * g + b, atol=1e-6, rtol=0)


def test_relinear_starts_as_a_conventional_network() -> None:
    torch.manual_seed(0)
    config = QuadraticConfig(hidden_size=16, num_layers=5)
    quadratic, conventional = Quadratic(config), Conventional(config)
    for ours, theirs in zip(quadratic.layers, conventional.layers, strict=True):
        theirs.neurons.load_state_dict(ours.neurons.linear.state_dict())
    conventional.embed.load_state_dict(quadratic.embed.state_dict())
    conventional.head.load_state_dict(quadratic.head.state_dict())
    points = torch.randn(50, 2)
    assert torch.equal(quadratic(points), conventional(points))


def test_relinear_keeps_a_deep_network_finite() -> None:
    def stream(relinear: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = Quadratic(QuadraticConfig(hidden_size=16, num_layers=24, relinear=relinear))
        hidden: torch.Tensor = model.embed(3 * torch.randn(50, 2))
        for layer in model.layers:
            hidden = layer(hidden)
        return hidden

    assert stream(relinear=True).abs().max() < 1e4
    assert not stream(relinear=False).isfinite().all()


def test_one_quadratic_neuron_computes_xor() -> None:
    """It is x + y - 2xy = (x + y)(1 - x - y) + x^2 + y^2; no conventional neuron separates these four points."""
    neuron = QuadraticLinear(2, 1, relinear=True)
    neuron.linear.weight.data, neuron.linear.bias.data = torch.tensor([[1.0, 1.0]]), torch.zeros(1)
    neuron.gate.weight.data, neuron.square.weight.data = torch.tensor([[-1.0, -1.0]]), torch.tensor([[1.0, 1.0]])
    points = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert neuron(points).flatten().tolist() == [0.0, 1.0, 1.0, 0.0]


def test_the_recipe_lets_quadratic_parameters_learn_more_slowly() -> None:
    recipe = find_recipe("quadratic")
    model = recipe.model()
    assert recipe.optimizer is not None
    fast, slow = recipe.optimizer(model).param_groups
    assert slow["lr"] < fast["lr"]
    assert {id(parameter) for parameter in slow["params"]} == {id(p) for p in quadratic_parameters(model)}
    assert len(fast["params"]) + len(slow["params"]) == len(list(model.parameters()))
    names = {name for name, p in model.named_parameters() if any(p is other for other in slow["params"])}
    assert names == {name for name, _ in model.named_parameters() if ".gate." in name or ".square." in name}

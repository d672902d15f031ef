"""S020: soft and hard selection are one function where the selection is one-hot, and only there."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from exporters.export import export_checkpoint
from models import catalogue
from models.errors import ArtifactError
from models.kan.bases import FAMILIES
from models.kan.s_kan import SKan, SKanConfig
from models.kan.selectable import SelectableLayer
from models.layered import num_parameters
from tests.models.kan.selection import exported, hardened, make_sure

SOFT = SKanConfig(num_features=3, num_outputs=2, widths=(5,), num_functions=6, is_hard=False)


def soft() -> SKan:
    torch.manual_seed(0)
    return SKan(SOFT)


def rows(count: int) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1))


def test_a_layer_is_its_equation_number_by_number() -> None:
    torch.manual_seed(0)
    layer, x = SelectableLayer(3, 2, 6, is_hard=False), rows(1)[0]
    layer.preferences.data.normal_()
    for o in range(2):
        wanted = layer.base.bias[o]
        for i in range(3):
            wanted = wanted + layer.base.weight[o, i] * F.silu(x[i])
            shares = torch.softmax(layer.preferences[i], dim=0)
            for f, family in enumerate(FAMILIES.values()):
                wanted = wanted + shares[f] * (layer.coefficients[o, i, f] * family(torch.tanh(x[i]), 6)).sum()
        assert torch.allclose(layer(x[None])[0, o], wanted, atol=1e-5)


def test_the_export_of_a_one_hot_selection_is_the_soft_net(tmp_path: Path) -> None:
    model, inputs = make_sure(soft()), rows(7)
    with torch.inference_mode():
        wanted = model(inputs)
        assert torch.allclose(hardened(model)(inputs), wanted, atol=1e-6)
    assert torch.allclose(exported(hardened(model), tmp_path, inputs, "onnx"), wanted, atol=1e-5)


def test_a_mixture_of_families_is_no_hard_net() -> None:
    model, inputs = soft(), rows(7)
    with torch.inference_mode():
        assert (hardened(model)(inputs) - model(inputs)).abs().max() > 0.1


def test_a_colder_softmax_ends_in_the_hard_choice() -> None:
    model, inputs = soft(), rows(7)
    layers = [layer for layer in model.modules() if isinstance(layer, SelectableLayer)]
    for layer in layers:
        layer.preferences.data.normal_()
    with torch.inference_mode():
        wanted, away = hardened(model)(inputs), []
        for temperature in (1.0, 0.1, 0.001, 0.0):
            for layer in layers:
                layer.temperature = temperature
            away.append(float((model(inputs) - wanted).abs().max()))
    assert away[0] > away[1] > away[2]
    assert away[3] < 1e-6


def test_a_hard_net_is_as_large_as_one_of_a_single_family() -> None:
    single = SKan(replace(SOFT, is_hard=True))
    for layer in single.modules():
        if isinstance(layer, SelectableLayer):
            layer.choose("chebyshev")
            assert layer.shares()[:, list(FAMILIES).index("chebyshev")].all()
    assert num_parameters(hardened(make_sure(soft()))) == num_parameters(single)


def test_a_hard_net_comes_back_with_its_choices(tmp_path: Path) -> None:
    model, inputs = hardened(make_sure(soft())), rows(4)
    catalogue.save(model, tmp_path)
    with torch.inference_mode():
        assert torch.equal(catalogue.load(tmp_path)(inputs), model(inputs))


def test_a_soft_net_is_not_exported(tmp_path: Path) -> None:
    catalogue.save(soft(), tmp_path / "soft")
    with pytest.raises(ArtifactError, match=r"is_hard = false is the form for training.*call harden\(\)"):
        export_checkpoint(tmp_path / "soft", tmp_path / "repository")


def test_fewer_functions_than_a_spline_has_are_refused() -> None:
    with pytest.raises(ArtifactError, match="num_functions = 3; a cubic spline has at least 4"):
        SKanConfig(num_functions=3)

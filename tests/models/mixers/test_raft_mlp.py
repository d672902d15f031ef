"""RaftMLP: what a raft joins, what that saves, and images of another size."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from models import catalogue
from models.errors import ArtifactError
from models.layered import num_parameters
from models.mixers.mlp_mixer import MLPMixer, MLPMixerConfig
from models.mixers.raft_mlp import RaftMixing, RaftMLP, RaftMLPConfig, interpolation

CONFIG = RaftMLPConfig(hidden_size=12, raft_size=3, num_layers=2)


def made() -> RaftMLP:
    torch.manual_seed(0)
    return RaftMLP(CONFIG).eval()


def test_a_mixing_is_a_loop_over_columns_and_rafts() -> None:
    torch.manual_seed(0)
    mixing, hidden = RaftMixing(CONFIG), torch.randn(2, 4, 4, 12)
    wanted = torch.empty_like(hidden)
    for column in range(4):
        for raft in range(4):
            channels = [raft, raft + 4, raft + 8]
            vector = torch.cat([hidden[:, :, column, channel] for channel in channels], 1)  # [B, r*H]
            mixed = mixing.mlp(vector)
            for place, channel in enumerate(channels):
                wanted[:, :, column, channel] = mixed[:, place * 4 : place * 4 + 4]
    torch.testing.assert_close(mixing.mix(hidden), wanted, atol=1e-6, rtol=0)


def test_a_mixing_joins_one_column_and_one_raft() -> None:
    torch.manual_seed(0)
    mixing, hidden = RaftMixing(CONFIG), torch.randn(1, 4, 4, 12)
    before = mixing.mix(hidden)
    hidden[0, 1, 2, 5] += 1
    changed = (mixing.mix(hidden) != before)[0].nonzero()
    assert sorted({tuple(place) for place in changed[:, 1:].tolist()}) == [(2, 1), (2, 5), (2, 9)]
    assert set(changed[:, 0].tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize(("image_size", "patch_size", "raft_size"), [(8, 2, 2), (28, 2, 4), (224, 16, 4)])
def test_rafts_need_fewer_parameters_than_a_mixer(image_size: int, patch_size: int, raft_size: int) -> None:
    """Both widen tokens two times and channels four times; the first stage's sizes are those of the paper's models."""
    sizes = {"image_size": image_size, "patch_size": patch_size, "hidden_size": 64, "channel_size": 256}
    grid = image_size // patch_size
    with torch.device("meta"):
        raft = RaftMLP(RaftMLPConfig(**sizes, raft_size=raft_size, token_size=2 * raft_size * grid))
        mixer = MLPMixer(MLPMixerConfig(**sizes, token_size=2 * grid**2))
    assert num_parameters(raft) < num_parameters(mixer)


def test_resized_weights_mix_as_resized_features() -> None:
    """The reference is what the paper's code does: features to the trained grid, mixed, and back."""
    model = made()
    resized = model.resized(12)
    there, back = interpolation(6, 4), interpolation(4, 6)
    hidden = torch.randn(2, 6, 6, 12)
    for small, large in zip(model.layers, resized.layers, strict=True):
        for trained, mixing in ((small.vertical, large.vertical), (small.horizontal, large.horizontal)):
            columns = torch.einsum("hk,bkwd->bhwd", there, hidden)  # 6 rows to 4
            wanted = torch.einsum("kh,bhwd->bkwd", back, trained.mix(columns))
            torch.testing.assert_close(mixing.mix(hidden), wanted, atol=1e-5, rtol=0)


def test_interpolation_is_bicubic() -> None:
    images = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    matrix = interpolation(4, 6)
    wanted = F.interpolate(images, (6, 6), mode="bicubic", align_corners=False)[0, 0]
    torch.testing.assert_close(matrix @ images[0, 0] @ matrix.T, wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(matrix.sum(1), torch.ones(6))


def test_resized_to_its_own_size_is_the_same_network() -> None:
    model, images = made(), torch.rand(3, 1, 8, 8) * 16
    torch.testing.assert_close(model.resized(8)(images), model(images), atol=1e-6, rtol=0)


def test_a_resized_network_is_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    resized, images = made().resized(12), torch.rand(3, 1, 12, 12) * 16
    catalogue.save(resized, tmp_path)
    assert torch.equal(catalogue.load(tmp_path)(images), resized(images))
    assert resized.inputs[0].shape == (-1, 1, 12, 12)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ArtifactError, match="rafts of 5 channels do not fill a hidden_size of 12; choose"):
        RaftMLPConfig(hidden_size=12, raft_size=5)
    with pytest.raises(ArtifactError, match="patches of 2 pixels a side do not fill images of 9; choose"):
        made().resized(9)

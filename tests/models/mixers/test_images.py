"""What mixers of images share: how an image becomes a grid of tokens, and which grids there are."""

from dataclasses import replace

import pytest
import torch

from models.errors import ArtifactError
from models.mixers.images import ImageConfig, PatchEmbedding, PooledClassifier


@pytest.mark.parametrize("patch_size", [0, 3, 5, 16])
def test_patches_that_do_not_fill_the_image_are_refused(patch_size: int) -> None:
    with pytest.raises(ArtifactError, match=rf"patches of {patch_size} .* images of 8; choose .* \[1, 2, 4, 8\]"):
        replace(ImageConfig(), patch_size=patch_size)


def test_a_token_is_made_from_its_patch_alone() -> None:
    torch.manual_seed(0)
    embed = PatchEmbedding(ImageConfig())
    images = torch.rand(1, 1, 8, 8) * 16
    before = embed(images)
    images[0, 0, 2, 5] += 1
    changed = (embed(images) != before).any(-1)[0]
    assert changed.nonzero().tolist() == [[1, 2]]


def test_the_head_does_not_mind_the_order_of_tokens() -> None:
    torch.manual_seed(0)
    head = PooledClassifier(ImageConfig())
    hidden = torch.randn(2, 4, 4, 32)
    torch.testing.assert_close(head(hidden.flip(1).transpose(1, 2)), head(hidden))

"""The image classifiers that are read from timm's directories: sizes from the tensors, the rest from the name.

timm's config.json says `architecture`, `pretrained_cfg` and the `model_args` that differ from what the name stands for.
Names with further words stand for further changes and are refused.
"""

import re
from collections.abc import Mapping

from models.errors import ArtifactError
from models.shards import Shards
from models.vision.convnext import ConvNeXt, ConvNeXtConfig
from models.vision.naming import Architecture, Raw, Renaming, count_of, numbered, shape_of
from models.vision.resnet import BlockKind, ResNet, ResNetConfig
from models.vision.vit import VisionTransformer, ViTConfig

_EPS = 1e-6
# Attention heads cannot be seen in the tensors.
_HEADS = {"tiny": 3, "small": 6, "medium": 8, "base": 12, "large": 16, "huge": 16}
_BLOCKS: Mapping[str, BlockKind] = {
    **dict.fromkeys(("resnet18", "resnet34"), "basic"),
    **dict.fromkeys(("resnet26", "resnet50", "resnet101", "resnet152", "resnet200"), "bottleneck"),
}
# Arguments that the tensors tell, or that matter in training alone.
_SEEN = frozenset(
    (
        *("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio"),
        *("layers", "channels", "depths", "dims", "conv_mlp"),
        *("drop_rate", "drop_path_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"),
    )
)
_VIT = r"(?:vit|deit|deit3)_(tiny|small|medium|base|large|huge)(?:_distilled)?_patch\d+_\d+"
_CONVNEXT = r"convnext(?:v2)?_(?:atto|femto|pico|nano|tiny|small|base|large|xlarge|huge)"


def find(raw: Raw, directory: object) -> Architecture:
    """The entry of a checkpoint. Raises ArtifactError for a network that is not computed here, and for arguments."""
    name = str(raw.get("architecture"))
    found = next((entry for pattern, entry in _ARCHITECTURES if re.fullmatch(pattern, name)), None)
    if found is None:
        raise ArtifactError(
            f"{directory} holds timm's {name!r}; supported are vit_*_patch*_*, deit_*, deit3_*, {', '.join(_BLOCKS)}, "
            "convnext_* and convnextv2_*, without further words in the name"
        )
    arguments = raw.get("model_args") or {}
    strange = sorted(arguments.keys() - _SEEN - {"global_pool"})
    if strange:
        raise ArtifactError(f"{directory} was made with {strange} in its model_args, which are not supported")
    pool = arguments.get("global_pool", raw.get("global_pool"))
    if pool not in (None, "", "token" if name.startswith(("vit", "deit")) else "avg"):
        raise ArtifactError(f"config.json says global_pool = {pool!r}, which is not supported for {name!r}")
    return found


def image_size(raw: Raw) -> tuple[int, int]:
    """Height and width that `pretrained_cfg` says the network is run at. Raises ArtifactError."""
    size = (raw.get("pretrained_cfg") or {}).get("input_size") or [3, 224, 224]
    if len(size) != 3 or any(type(number) is not int or number < 1 for number in size):
        raise ArtifactError(f"config.json says input_size = {size!r}; it must be channels, height and width")
    return size[1], size[2]


def _vit(raw: Raw, shards: Shards) -> VisionTransformer:
    width, num_channels, *patch = shape_of(shards, "patch_embed.proj.weight", 4)
    name = re.fullmatch(_VIT, raw["architecture"])
    assert name is not None
    num_heads = (raw.get("model_args") or {}).get("num_heads", _HEADS[name[1]])
    if type(num_heads) is not int or num_heads < 1 or width % num_heads:
        raise ArtifactError(f"config.json says {num_heads!r} attention heads, which do not divide the width {width}")
    return VisionTransformer(
        ViTConfig(
            image_size=image_size(raw),
            patch_size=(patch[0], patch[1]),
            num_channels=num_channels,
            num_classes=shape_of(shards, "head.weight", 2)[0],
            hidden_size=width,
            intermediate_size=shape_of(shards, "blocks.0.mlp.fc1.weight", 2)[0],
            num_layers=count_of(shards, r"blocks\.(\d+)\."),
            num_heads=num_heads,
            norm_eps=_EPS,
            has_qkv_bias="blocks.0.attn.qkv.bias" in shards.names,
            has_distillation="dist_token" in shards.names,
            has_distilled_head="head_dist.weight" in shards.names,
            has_scales="blocks.0.ls1.gamma" in shards.names,
            has_positions_of_tokens=not raw["architecture"].startswith("deit3"),
        )
    )


def _resnet(raw: Raw, shards: Shards) -> ResNet:
    stem, num_channels, *_ = shape_of(shards, "conv1.weight", 4)
    block = _BLOCKS[raw["architecture"]]
    last = "conv2" if block == "basic" else "conv3"
    num_stages = count_of(shards, r"layer(\d+)\.") - 1
    stages = range(1, num_stages + 1)
    return ResNet(
        ResNetConfig(
            image_size=image_size(raw),
            num_channels=num_channels,
            num_classes=shape_of(shards, "fc.weight", 2)[0],
            stem_width=stem,
            widths=tuple(shape_of(shards, f"layer{i}.0.{last}.weight", 4)[0] for i in stages),
            depths=tuple(count_of(shards, rf"layer{i}\.(\d+)\.") for i in stages),
            block=block,
        )
    )


def _convnext(raw: Raw, shards: Shards) -> ConvNeXt:
    _, num_channels, *patch = shape_of(shards, "stem.0.weight", 4)
    stages = range(count_of(shards, r"stages\.(\d+)\."))
    return ConvNeXt(
        ConvNeXtConfig(
            image_size=image_size(raw),
            patch_size=(patch[0], patch[1]),
            num_channels=num_channels,
            num_classes=shape_of(shards, "head.fc.weight", 2)[0],
            widths=tuple(shape_of(shards, f"stages.{i}.blocks.0.conv_dw.weight", 4)[0] for i in stages),
            depths=tuple(count_of(shards, rf"stages\.{i}\.blocks\.(\d+)\.") for i in stages),
            head_eps=_EPS,
            has_scales="stages.0.blocks.0.gamma" in shards.names,
            has_response_norm="stages.0.blocks.0.mlp.grn.weight" in shards.names,
        )
    )


_VIT_NAMES: Renaming = (
    (r"^embed\.class_token", "cls_token"),
    (r"^embed\.distillation_token", "dist_token"),
    (r"^embed\.positions", "pos_embed"),
    (r"^embed\.patches", "patch_embed.proj"),
    (r"^layers\.", "blocks."),
    (r"\.attention_norm\.", ".norm1."),
    (r"\.attention_scale$", ".ls1.gamma"),
    (r"\.attention\.output\.", ".attn.proj."),
    (r"\.mlp_norm\.", ".norm2."),
    (r"\.mlp_scale$", ".ls2.gamma"),
    (r"\.mlp\.up\.", ".mlp.fc1."),
    (r"\.mlp\.down\.", ".mlp.fc2."),
    (r"^head\.norm", "norm"),
    (r"^head\.classifier", "head"),
    (r"^head\.distilled", "head_dist"),
)
_VIT_FUSED = tuple((rf"\.attention\.{name}\.", ".attn.qkv.", i, 3) for i, name in enumerate(("query", "key", "value")))
_RESNET_NAMES: Renaming = (
    (r"^stem\.first\.conv", "conv1"),
    (r"^stem\.first\.norm", "bn1"),
    (r"^stages\.(\d+)\.", numbered(1, "layer{}.")),
    (r"convs\.(\d+)\.conv\.", numbered(1, "conv{}.")),
    (r"convs\.(\d+)\.norm\.", numbered(1, "bn{}.")),
    (r"\.shortcut\.conv\.", ".downsample.0."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.mean$", ".running_mean"),
    (r"\.variance$", ".running_var"),
    (r"^head\.classifier", "fc"),
)
_CONVNEXT_NAMES: Renaming = (
    (r"^stages\.(\d+)\.", r"stages.\1.blocks."),
    (r"^reductions\.(\d+)\.norm\.", numbered(1, "stages.{}.downsample.0.")),
    (r"^reductions\.(\d+)\.conv\.", numbered(1, "stages.{}.downsample.1.")),
    (r"^stem\.conv", "stem.0"),
    (r"^stem\.norm", "stem.1"),
    (r"\.depthwise\.", ".conv_dw."),
    (r"\.up\.", ".mlp.fc1."),
    (r"\.down\.", ".mlp.fc2."),
    (r"\.response\.", ".mlp.grn."),
    (r"\.scale$", ".gamma"),
    (r"^head\.classifier", "head.fc"),
)
_ARCHITECTURES = (
    (_VIT, Architecture(_vit, _VIT_NAMES, _VIT_FUSED)),
    ("|".join(_BLOCKS), Architecture(_resnet, _RESNET_NAMES, ignored=(r"\.num_batches_tracked$",))),
    (_CONVNEXT, Architecture(_convnext, _CONVNEXT_NAMES)),
)

"""The image classifiers that are read from transformers' directories: config.json, and names of tensors."""

from collections.abc import Mapping

from models.errors import ArtifactError
from models.shards import Shards
from models.vision.convnext import ConvNeXt, ConvNeXtConfig
from models.vision.naming import Architecture, Raw, Renaming, check_sizes, numbered, pair, shape_of
from models.vision.resnet import ResNet, ResNetConfig
from models.vision.vit import VisionTransformer, ViTConfig

# What transformers' image processors and configurations assume where nothing is said.
_IMAGE_SIZE = 224


def _vit(raw: Raw, shards: Shards) -> VisionTransformer:
    check_sizes(raw, ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"))
    if raw["hidden_size"] % raw["num_attention_heads"]:
        raise ArtifactError(
            f"config.json says num_attention_heads = {raw['num_attention_heads']}, "
            f"which does not divide hidden_size = {raw['hidden_size']}"
        )
    is_distilled = "distillation_classifier.weight" in shards.names
    return VisionTransformer(
        ViTConfig(
            image_size=pair(raw, "image_size", _IMAGE_SIZE),
            patch_size=pair(raw, "patch_size", 16),
            num_channels=raw.get("num_channels", 3),
            num_classes=_num_classes(raw, shards, "cls_classifier.weight" if is_distilled else "classifier.weight"),
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_layers=_bounded(raw["num_hidden_layers"], shards),
            num_heads=raw["num_attention_heads"],
            norm_eps=raw.get("layer_norm_eps", 1e-12),
            activation=raw.get("hidden_act", "gelu"),
            has_qkv_bias=raw.get("qkv_bias", True),
            has_distillation=raw["model_type"] == "deit",
            has_distilled_head=is_distilled,
        )
    )


def _resnet(raw: Raw, shards: Shards) -> ResNet:
    widths, depths = _stages(raw, shards)
    block = raw.get("layer_type", "bottleneck")
    if block not in ("basic", "bottleneck"):
        raise ArtifactError(f"config.json says layer_type = {block!r}; it must be 'basic' or 'bottleneck'")
    check_sizes(raw, ("embedding_size",))
    return ResNet(
        ResNetConfig(
            image_size=pair(raw, "image_size", _IMAGE_SIZE),
            num_channels=raw.get("num_channels", 3),
            num_classes=_num_classes(raw, shards, "classifier.1.weight"),
            stem_width=raw["embedding_size"],
            widths=widths,
            depths=depths,
            block=block,
            activation=raw.get("hidden_act", "relu"),
            has_strided_first_stage=raw.get("downsample_in_first_stage", False),
            is_strided_early=raw.get("downsample_in_bottleneck", False),
        )
    )


def _convnext(raw: Raw, shards: Shards) -> ConvNeXt:
    widths, depths = _stages(raw, shards)
    is_first = raw["model_type"] == "convnext"
    return ConvNeXt(
        ConvNeXtConfig(
            image_size=pair(raw, "image_size", _IMAGE_SIZE),
            patch_size=pair(raw, "patch_size", 4),
            num_channels=raw.get("num_channels", 3),
            num_classes=_num_classes(raw, shards, "classifier.weight"),
            widths=widths,
            depths=depths,
            head_eps=raw.get("layer_norm_eps", 1e-12),
            activation=raw.get("hidden_act", "gelu"),
            has_scales=is_first and raw.get("layer_scale_init_value", 1e-6) > 0,
            has_response_norm=not is_first,
        )
    )


def _stages(raw: Raw, shards: Shards) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels and number of blocks of each stage."""
    widths, depths = raw.get("hidden_sizes"), raw.get("depths")
    for name, sizes in (("hidden_sizes", widths), ("depths", depths)):
        if not isinstance(sizes, list) or not sizes or any(type(size) is not int or size < 1 for size in sizes):
            raise ArtifactError(f"config.json says {name} = {sizes!r}; it must be a list of whole numbers from 1 on")
    assert isinstance(widths, list)
    assert isinstance(depths, list)
    if len(widths) != len(depths):
        raise ArtifactError(f"config.json has {len(widths)} hidden_sizes and {len(depths)} depths; save it again")
    _bounded(sum(depths), shards)
    return tuple(widths), tuple(depths)


def _bounded(num_layers: int, shards: Shards) -> int:
    if num_layers > len(shards.names):
        raise ArtifactError(
            f"config.json says there are {num_layers} layers and the checkpoint holds {len(shards.names)} tensors; "
            "save the checkpoint again"
        )
    return num_layers


def _num_classes(raw: Raw, shards: Shards, classifier: str) -> int:
    count = shape_of(shards, classifier, 2)[0]
    labels = raw.get("id2label")
    if isinstance(labels, dict) and len(labels) != count:
        raise ArtifactError(
            f"config.json names {len(labels)} labels and {classifier!r} has {count} rows; save the checkpoint again"
        )
    return count


def _vit_names(prefix: str, classifier: str) -> Renaming:
    return (
        (r"^embed\.class_token", f"{prefix}embeddings.cls_token"),
        (r"^embed\.distillation_token", f"{prefix}embeddings.distillation_token"),
        (r"^embed\.positions", f"{prefix}embeddings.position_embeddings"),
        (r"^embed\.patches", f"{prefix}embeddings.patch_embeddings.projection"),
        (r"^layers\.", f"{prefix}encoder.layer."),
        (r"\.attention_norm\.", ".layernorm_before."),
        (r"\.attention\.(query|key|value)\.", r".attention.attention.\1."),
        (r"\.attention\.output\.", ".attention.output.dense."),
        (r"\.mlp_norm\.", ".layernorm_after."),
        (r"\.mlp\.up\.", ".intermediate.dense."),
        (r"\.mlp\.down\.", ".output.dense."),
        (r"^head\.norm", f"{prefix}layernorm"),
        (r"^head\.classifier", classifier),
        (r"^head\.distilled", "distillation_classifier"),
    )


_RESNET_NAMES: Renaming = (
    (r"^stem\.first\.", "resnet.embedder.embedder."),
    (r"^stages\.(\d+)\.(\d+)\.convs\.", r"resnet.encoder.stages.\1.layers.\2.layer."),
    (r"^stages\.(\d+)\.(\d+)\.shortcut\.", r"resnet.encoder.stages.\1.layers.\2.shortcut."),
    (r"\.conv\.", ".convolution."),
    (r"\.norm\.mean$", ".norm.running_mean"),
    (r"\.norm\.variance$", ".norm.running_var"),
    (r"\.norm\.", ".normalization."),
    (r"^head\.classifier", "classifier.1"),
)


def _convnext_names(prefix: str) -> Renaming:
    return (
        (r"^reductions\.(\d+)\.norm\.", numbered(1, prefix + "encoder.stages.{}.downsampling_layer.0.")),
        (r"^reductions\.(\d+)\.conv\.", numbered(1, prefix + "encoder.stages.{}.downsampling_layer.1.")),
        (r"^stem\.conv", f"{prefix}embeddings.patch_embeddings"),
        (r"^stem\.norm", f"{prefix}embeddings.layernorm"),
        (r"^head\.norm", f"{prefix}layernorm"),
        (r"^head\.classifier", "classifier"),
        (r"^stages\.(\d+)\.", rf"{prefix}encoder.stages.\1.layers."),
        (r"\.depthwise\.", ".dwconv."),
        (r"(layers\.\d+)\.norm\.", r"\1.layernorm."),
        (r"\.up\.", ".pwconv1."),
        (r"\.down\.", ".pwconv2."),
        (r"\.response\.", ".grn."),
        (r"\.scale$", ".layer_scale_parameter"),
    )


# Of each `model_type`.
ARCHITECTURES: Mapping[str, Architecture] = {
    "vit": Architecture(_vit, _vit_names("vit.", "classifier")),
    "deit": Architecture(_vit, _vit_names("deit.", "classifier")),
    "resnet": Architecture(_resnet, _RESNET_NAMES, ignored=(r"\.num_batches_tracked$",)),
    "convnext": Architecture(_convnext, _convnext_names("convnext.")),
    "convnextv2": Architecture(_convnext, _convnext_names("convnextv2.")),
}
_TAUGHT = Architecture(_vit, _vit_names("deit.", "cls_classifier"))


def find(raw: Raw, shards: Shards) -> Architecture:
    """The entry of a checkpoint; a DeiT with a classifier for each of its two tokens names them otherwise."""
    return _TAUGHT if "distillation_classifier.weight" in shards.names else ARCHITECTURES[raw["model_type"]]

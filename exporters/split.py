"""Which parts a model has, by its family. Each family's parts are in a file of its own."""

from exporters.parts import Parts
from exporters.split_encoder import split_encoder
from exporters.split_language import split_language
from exporters.split_stack import split_stack
from models.encoders.model import EncoderModel
from models.errors import ArtifactError
from models.layered import LayeredModel
from models.lm.model import LanguageModel
from models.mixers.residual_mlp import ResidualMLP
from models.vision.stages import Stages
from models.vision.vit import VisionTransformer


def split(model: LayeredModel) -> Parts:
    """The parts of `model`. Raises ArtifactError for a family whose inputs are not known here."""
    if isinstance(model, LanguageModel):
        return split_language(model)
    if isinstance(model, EncoderModel):
        return split_encoder(model)
    if isinstance(model, ResidualMLP):
        return split_stack(model, "features", (model.config.num_features,), "logits", model.config.num_classes)
    if isinstance(model, VisionTransformer | Stages):
        return split_stack(model, "pixel_values", model.image_shape, "logits", model.num_classes)
    raise ArtifactError(
        f"{type(model).__name__} has no known inputs; exported are language models, encoders, ResidualMLP and image "
        "classifiers"
    )

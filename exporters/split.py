"""Which parts a model has, by its family. Each family's parts are in a file of its own."""

from exporters.parts import Parts
from exporters.split_encoder import split_encoder
from exporters.split_language import split_language
from exporters.split_sequence import split_sequence
from exporters.split_stack import split_stack, split_whole
from models.artifact import TensorSpec
from models.catalogue import specs_of
from models.encoders.model import EncoderModel
from models.errors import ArtifactError
from models.layered import LayeredModel, SequenceStack, TensorStack, Whole
from models.lm.model import LanguageModel
from models.vision.stages import Stages
from models.vision.vit import VisionTransformer


def split(model: LayeredModel) -> Parts:
    """The parts of `model`. Raises ArtifactError for a family whose inputs are not known here."""
    if isinstance(model, LanguageModel):
        return split_language(model)
    if isinstance(model, EncoderModel):
        return split_encoder(model)
    if isinstance(model, VisionTransformer | Stages):
        inputs = TensorSpec(name="pixel_values", datatype="FP32", shape=(-1, *model.image_shape))
        outputs = TensorSpec(name="logits", datatype="FP32", shape=(-1, model.num_classes))
        return split_stack(model, inputs, outputs)
    specs = specs_of(model)
    if specs and isinstance(model, TensorStack):
        return split_stack(model, *specs)
    if specs and isinstance(model, SequenceStack):
        return split_sequence(model, *specs)
    if specs and isinstance(model, Whole):
        return split_whole(model, *specs)
    raise ArtifactError(
        f"{type(model).__name__} has no known inputs; exported are language models, encoders, image classifiers and "
        "the architectures of the catalogue"
    )

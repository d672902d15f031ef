"""Writes `timm.json`: timm's own configurations, tensor names and answers, of small models. Needs timm and torchvision.

python tests/contracts/record_timm.py, with timm 1.0.31 when it was run last.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[2]))

import timm  # type: ignore[import-not-found]
import torch
from timm.models import save_for_hf  # type: ignore[import-not-found]

from tests.contracts.classifiers import NUM_CLASSES, RECORDED, drawn, pixels

_TOKENS = {"img_size": 32, "patch_size": 16, "embed_dim": 12, "depth": 2}
_SMALL = {"pretrained_cfg_overlay": {"input_size": (3, 40, 40)}}
_STAGES = {"depths": [1, 1, 2, 1], "dims": [4, 4, 8, 8], **_SMALL}
MODELS = {
    "vit_tiny_patch16_224": _TOKENS,
    "deit_tiny_distilled_patch16_224": _TOKENS,
    "deit3_small_patch16_224": _TOKENS,
    "resnet18": {"layers": [2, 1, 1, 1], "channels": [64, 4, 4, 8], **_SMALL},
    "resnet50": {"layers": [1, 1, 2, 1], "channels": [2, 2, 4, 4], **_SMALL},
    "convnext_tiny": _STAGES,
    "convnext_atto": _STAGES,
    "convnextv2_tiny": _STAGES,
}


def main() -> None:
    found = {}
    for name, arguments in MODELS.items():
        model = timm.create_model(name, num_classes=NUM_CLASSES, **arguments).eval()
        shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
        model.load_state_dict({key: drawn(key, s) if s else torch.tensor(7) for key, s in shapes.items()})
        with TemporaryDirectory() as directory:
            save_for_hf(model, directory, safe_serialization=True)
            config = json.loads((Path(directory) / "config.json").read_text())
        with torch.inference_mode():
            logits = model(pixels(config["pretrained_cfg"]["input_size"]))
        found[name] = {"config": config, "tensors": shapes, "logits": logits.tolist()}
    RECORDED.write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()

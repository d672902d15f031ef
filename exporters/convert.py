"""A decoder checkpoint in another residual form: the same weights, of which its config.json says something else.

What comes out is not what the weights were trained for, and says so; training makes a model of it.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from models.checkpoint import load_checkpoint, read_raw
from models.errors import ArtifactError, InputError
from models.lm.model import LanguageModel
from models.lm.residual import Residual, parse_form
from models.lm.wrapping import OURS, wrapped

# Not taken along: the one is written anew, the other is about the weights in the form they were trained in.
_LEFT = ("config.json", "README.md")


def convert(checkpoint: Path, target: Path, form: str) -> Residual:
    """Write `target`, whole or not at all: files as links where the file system has them, else as copies.

    form: text of the residual form. Returns it as it was written. Raises ArtifactError for a checkpoint or a form that
    is none, InputError for a checkpoint that cannot be brought into it.
    """
    if target.exists():
        raise ArtifactError(f"{target} exists; name another --out")
    raw = _converted(checkpoint, form)
    hidden = target.parent / f".{target.name}-{uuid4().hex}"
    try:
        hidden.mkdir(parents=True)
        for path in sorted(checkpoint.iterdir()):
            if path.is_file() and path.name not in _LEFT and not path.name.startswith("."):
                _link(path.resolve(), hidden / path.name)
        (hidden / "config.json").write_text(json.dumps(wrapped(raw), indent=2) + "\n")
        model = load_checkpoint(hidden, dtype=None)
        hidden.rename(target)
    except OSError as error:
        raise ArtifactError(f"{target} cannot be written: {error}; make room or name another --out") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    assert isinstance(model, LanguageModel)
    return model.config.residual


def _converted(checkpoint: Path, form: str) -> Mapping[str, Any]:
    wanted = parse_form(form)
    model = load_checkpoint(checkpoint, dtype=None)
    if not isinstance(model, LanguageModel):
        raise InputError(f"{checkpoint} is no decoder; residual forms are of these alone")
    if model.config.residual.form != "standard":
        raise InputError(
            f"{checkpoint} has the residual form {model.residual_form} already; convert the standard one it comes from"
        )
    if wanted.form in ("standard", "parallel"):
        raise InputError(
            f"weights of the standard form have no use in the form {form}: parallel blocks have one norm, not two; "
            "convert to ladder, a hybrid such as ladder:16-31, desync-2x@2 or upper-bound, or train from scratch"
        )
    raw = read_raw(checkpoint)
    told = raw.get(OURS, {})
    return {
        **raw,
        "residual": replace(wanted, is_trained=False).said(),
        OURS: {**told, "done": [*told.get("done", ()), f"converted to {wanted.text}"]},
    }


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)

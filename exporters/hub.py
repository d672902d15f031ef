"""A checkpoint of the Hugging Face hub as a local directory: downloaded once, pinned to a commit, resumed if cut."""

import re
from pathlib import Path

from models.errors import ArtifactError, InputError

# What a checkpoint is read from; pickles and code stay where they are.
FILES = ("*.json", "*.safetensors", "*.jinja", "README.md")
_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def is_hub_id(text: str) -> bool:
    """Whether a text can be `organisation/name`."""
    return _ID.fullmatch(text) is not None


def download(model: str, revision: str | None = None) -> Path:
    """The directory of a hub model, its name the commit. Raises InputError without the extra, ArtifactError offline."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError as error:
        raise InputError(
            f"{model!r} is no directory, and models of the hub need the extra: pip install 'fathom-serving[hub]'"
        ) from error
    disable_progress_bars()
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # the library's errors share no base class
        raise ArtifactError(
            f"{model!r}{f' at {revision}' if revision else ''} cannot be downloaded: {error}; "
            "name a directory, or a model and a revision of the hub"
        ) from error

"""The errors a caller can cause or meet, as one small tree. No HTTP words in here.

Every message names the value, the limit and the remedy.
"""


class FathomError(Exception):
    """Root of everything this project raises on purpose."""


class ChainError(FathomError):
    """A chain or another depth knob that the model cannot run."""


class InputError(FathomError):
    """An input of the wrong shape, datatype or content."""


class LengthError(FathomError):
    """A prompt or body longer than the model or the server takes."""


class UnknownModelError(FathomError):
    """A model or version that is not in the repository."""


class NotFoundError(FathomError):
    """A remembered chain or a job that is not there, or no longer."""


class GoneError(FathomError):
    """A session that was open and is no longer."""


class ConflictError(FathomError):
    """A session that another request uses, or that belongs to another model or version."""


class ArtifactError(FathomError):
    """A checkpoint, manifest or exported file that is missing, corrupt or not what it says."""


class BackendError(FathomError):
    """A runtime that cannot do what was asked of it."""


class ModelError(FathomError):
    """A model's own code that raised, or gave something else than it said."""


class OverloadError(FathomError):
    """A queue that is full; `retry_after_s` says when to come back, `unit` of what there was too much."""

    def __init__(self, message: str, retry_after_s: float, unit: str = "requests") -> None:
        super().__init__(message)
        self.retry_after_s, self.unit = retry_after_s, unit


class FullError(OverloadError):
    """No room for one more session."""


class DeadlineError(FathomError):
    """A request whose time was over before its answer."""


class UnavailableError(FathomError):
    """A server that drains or a model that is still loading."""


class GroupLostError(UnavailableError):
    """Ranks of a model that are gone, and what they held with them; `retry_after_s` says when to come back.

    is_final: they do not come back by themselves.
    """

    def __init__(self, message: str, retry_after_s: float, is_final: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s, self.is_final = retry_after_s, is_final


class VerifierError(FathomError):
    """A verifier of answers that hangs, fails, lies or does not exist."""

"""From a model and settings to a backend whose ranks are up. Blocks until they are."""

import secrets
import tempfile
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from models.artifact import Manifest
from models.errors import BackendError
from models.parallel.stages import Stages
from service.backends.protocol import Dtype
from service.backends.remote import RemoteBackend
from service.parallel.address import Address, parse_address
from service.parallel.building import Builder
from service.parallel.door import Door
from service.parallel.launch import Elsewhere, Here, Launcher
from service.parallel.messages import Share, Welcome
from service.parallel.secret import read_secret
from service.parallel.supervisor import Group, Supervisor

# A leader that says nothing for so long has left its ranks.
_LEADER_SILENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Ranking:
    """How a model is shared: among how many ranks, what they compute in, and how long anything may take them.

    address: where ranks of other machines come to, with the file of the secret they know; none for ranks started here.
    stages: of a pipeline, each with as many of the ranks.
    """

    size: int
    device: str
    dtype: Dtype
    num_threads: int
    step_deadline_s: float
    group_timeout_s: float
    rank_silence_s: float
    address: str | None = None
    secret: Path | None = None
    stages: Stages | None = None


def open_ranks(
    manifest: Manifest, directory: Path, ranking: Ranking, num_pages: int, page_size: int, given_up: threading.Event
) -> RemoteBackend:
    """The ranks of one version, started and opened. Raises FathomError; then none is left.

    Also once it is given up by whoever waits for it.
    """
    with ExitStack() as left:
        folder = Path(left.enter_context(tempfile.TemporaryDirectory(prefix="fathom-ranks-")))
        door, launcher, secret = _opened(ranking, folder)
        share = Share(
            name=manifest.name,
            version=manifest.version,
            artifact=manifest.artifact_hash,
            directory="" if ranking.address else str(directory.resolve()),
            store="",
            device=ranking.device,
            dtype=ranking.dtype,
            num_threads=ranking.num_threads,
            num_pages=num_pages,
            page_size=page_size,
            group_timeout_s=ranking.group_timeout_s,
            bounds=ranking.stages.bounds if ranking.stages else (),
        )

        def welcoming(epoch: int, salt: str, store: str) -> Welcome:
            met = store or str(folder / f"epoch-{epoch}")
            return Welcome(epoch, salt, _LEADER_SILENCE_S, share.meeting_at(met))

        group = Group(manifest.name, ranking.size, ranking.step_deadline_s, ranking.rank_silence_s)
        supervisor = Supervisor(group, Builder(ranking.size, launcher, door, secret, welcoming))
        left.callback(supervisor.close)
        backend = RemoteBackend(manifest, supervisor, supervisor.open(given_up), left.pop_all().close, ranking.stages)
    return backend


def _opened(ranking: Ranking, folder: Path) -> tuple[Door, Launcher, bytes]:
    """Where ranks come in, who starts them, and the secret that they have to know."""
    if ranking.address is None:
        secret, address = secrets.token_bytes(32), Address(path=str(folder / "control"))
        return Door(address, secret), Here(address, secret), secret
    if ranking.secret is None:
        raise BackendError("ranks of other machines need a secret; name its file in FATHOM_RANKS_SECRET")
    secret = read_secret(ranking.secret)
    return Door(parse_address(ranking.address), secret), Elsewhere(), secret

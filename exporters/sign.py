"""The command `fathom sign`: a signature beside the manifest of a version."""

from pathlib import Path
from typing import Annotated

import typer


def sign(
    directory: Annotated[Path, typer.Argument(help="Folder of one version, such as repository/mine/1.")],
    key: Annotated[Path, typer.Option(help="Ed25519 private key in PEM: openssl genpkey -algorithm ed25519.")],
) -> None:
    """Sign a version, so that servers with FATHOM_REPOSITORY_KEY take it; every file's hash is checked first."""
    from models import signature
    from models.artifact import read_manifest

    manifest = read_manifest(directory)
    typer.echo(f"{manifest.name} {manifest.version}: {signature.sign(directory, key)}")

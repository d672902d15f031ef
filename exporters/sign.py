"""The command `fathom sign`: a signature beside the manifest of a version, or beside the settings of a model."""

from pathlib import Path
from typing import Annotated

import typer


def sign(
    places: Annotated[
        list[Path],
        typer.Argument(help="Folders of versions, such as repository/mine/1, and repository/mine/settings.json."),
    ],
    key: Annotated[Path, typer.Option(help="Ed25519 private key in PEM: openssl genpkey -algorithm ed25519.")],
) -> None:
    """Sign versions and settings, so that servers with FATHOM_REPOSITORY_KEY take them.

    Every file's hash is checked first. Settings are signed when they are named, never along with a version.
    """
    from models import signature
    from models.artifact import SETTINGS, read_manifest

    for place in places:
        if place.name == SETTINGS:
            typer.echo(f"{place}: {signature.sign_settings(place.parent, key)}")
            continue
        manifest = read_manifest(place)
        typer.echo(f"{manifest.name} {manifest.version}: {signature.sign(place, key)}")
        settings = place.resolve().parent / SETTINGS
        if settings.exists() and not settings.with_name(signature.SETTINGS_SIGNATURE).exists():
            typer.echo(f"{settings} is not signed; run: fathom sign {settings} --key {key}", err=True)

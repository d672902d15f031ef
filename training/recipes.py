"""Every recipe by the name of the checkpoint it makes. A family's recipes are in the file of that name."""

from importlib import import_module

from models.errors import UnknownModelError
from training.recipe import Recipe

FAMILIES = ("kan", "mixers", "recurrent")


def recipes() -> dict[str, Recipe]:
    """All there are; imports every family."""
    found = (import_module(f"training.{family}").RECIPES for family in FAMILIES)
    return {name: recipe for family in found for name, recipe in family.items()}


def find_recipe(name: str) -> Recipe:
    """The recipe of a checkpoint. Raises UnknownModelError listing those there are."""
    known = recipes()
    if name not in known:
        raise UnknownModelError(
            f"no recipe {name!r}; there are {sorted(known)}, and python -m training.arith and .digits"
        )
    return known[name]

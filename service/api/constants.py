"""From the body of a search request to its constants: the preset's, but for what the request names."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from models.chain import Chain
from models.errors import InputError
from service.api.searches import BudgetBody, MctsBody, SearchRequest, SpaceBody
from service.cola.mcts import MctsConfig
from service.cola.presets import Preset, preset_named
from service.cola.space import Space
from service.cola.spaces import knobs_of, make_space
from service.cola.task import Budget
from service.engine.engine import Engine


@dataclass(frozen=True, slots=True)
class Constants:
    """What a search really uses."""

    space: Space
    mcts: MctsConfig
    budget: Budget
    leaf_batch: int
    seed: int


def constants_of(body: SearchRequest, engine: Engine) -> Constants:
    """Resolve a request. Raises InputError or ChainError for what does not go together."""
    preset = preset_named(body.preset)
    return Constants(
        space=_space(body.space, preset, engine),
        mcts=replace(preset.mcts, **body.mcts.model_dump(exclude_unset=True, exclude={"leaf_batch"})),
        budget=replace(preset.budget, **body.budget.model_dump(exclude_unset=True)),
        leaf_batch=body.mcts.leaf_batch if "leaf_batch" in body.mcts.model_fields_set else preset.leaf_batch,
        seed=preset.seed if body.seed is None else body.seed,
    )


def echo(body: SearchRequest, engine: Engine) -> dict[str, Any]:
    """The constants as the response tells them; what the space does not have is left out."""
    used = constants_of(body, engine)
    knobs = {name: getattr(used.space, name) for name in knobs_of(used.space.name)}
    return {
        "preset": body.preset,
        "space": SpaceBody(name=used.space.name, **{name: _plain(value) for name, value in knobs.items()}),  # type: ignore[arg-type]
        "mcts": MctsBody(**asdict(used.mcts), leaf_batch=used.leaf_batch),
        "budget": BudgetBody(**asdict(used.budget)),
        "seed": used.seed,
        "kv": body.kv,
    }


def _space(body: SpaceBody, preset: Preset, engine: Engine) -> Space:
    longest = engine.limits.max_chain_length
    said = body.model_dump(exclude_unset=True, exclude={"name"})
    if body.chains is not None:
        said["chains"] = engine.chains(body.chains, len(body.chains)) if body.chains else ()
    name = body.name or preset.space
    of_preset = preset.space_knobs(engine.num_layers)
    # The preset's edits go with its own space; its lengths with every space that has lengths.
    kept = of_preset if name == preset.space else {key: of_preset[key] for key in of_preset.keys() & knobs_of(name)}
    space = make_space(name, engine.num_layers, {**kept, **said})
    if space.max_length > longest:
        raise InputError(f"chains of the space have up to {space.max_length} visits; this model takes {longest}")
    return space


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [list(one.layers) if isinstance(one, Chain) else one for one in value]
    return value

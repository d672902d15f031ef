"""Bodies of chain searches: what can be asked, and what is answered. Bounds that need a model are checked later."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.schemas import Body, ChainText


class BudgetBody(Body):
    """Whichever limit is met first ends the search. What is left out is the preset's; null is no limit."""

    simulations: int | None = Field(200, ge=1, le=100_000)
    seconds: float | None = Field(None, gt=0, le=3600, allow_inf_nan=False)
    layer_evaluations: int | None = Field(None, ge=1)
    stop: Literal["first", "proof"] | None = Field(
        None, description="also end when a chain has the full reward, or when in addition nothing shorter is untried"
    )


class SpaceBody(Body):
    """Which chains are searched, lengths in visits. What is left out is the preset's, or the space's own."""

    name: Literal["cola", "polar", "drllm", "menu"] | None = None
    operations: list[Literal["skip", "repeat"]] | None = Field(None, description="cola: the edits, both by default")
    max_block: int | None = Field(None, ge=1, le=4, description="cola, polar: visits one edit covers, 4 by default")
    max_repeats: int | None = Field(None, ge=1, le=4, description="cola: extra copies one repeat makes, 4 by default")
    deep_block: int | None = Field(None, ge=1, le=4, description="cola: max_block in chains that are already edited")
    max_visits: int | None = Field(None, ge=1, description="cola: visits of one layer")
    min_edit_layer: int | None = Field(None, ge=0, description="all but menu: visits before it are never edited")
    min_length: int | None = Field(None, ge=1, description="all but menu: 1 by default")
    max_length: int | None = Field(None, ge=1, description="all but menu: twice the number of layers by default")
    chains: list[ChainText | list[int]] | None = Field(None, max_length=10_000, description="menu: the chains")


class MctsBody(Body):
    """Constants of the tree search. What is left out is the preset's; shown are those of preset 'default'."""

    exploration: float = Field(0.4, ge=0, le=1000, allow_inf_nan=False)
    length_penalty: float = Field(0.2, ge=0, le=1000, allow_inf_nan=False)
    random_child: float = Field(0.1, ge=0, le=1)
    widening: float | None = Field(
        8.0,
        gt=0,
        allow_inf_nan=False,
        description="children per square root of visits; null opens all, as in the paper",
    )
    prior: float = Field(0.0, ge=0, le=1000, allow_inf_nan=False, description="weight of the layers' block influence")
    walk: Literal["tree", "released"] = Field("tree", description="released: the descent of the authors' code")
    leaf_batch: int = Field(8, ge=1, le=256, description="chains scored together; part of the search's identity")


class SearchRequest(Body):
    """A search of the chain of one sample, or of several."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "arith", "input": "48213+977=", "target": "49190"}]}
    )
    model: str
    version: str | None = None
    input: Any = Field(None, description="one prompt or row")
    inputs: list[Any] | None = Field(None, description="several, instead of `input`")
    target: Any = Field(None, description="the answer wanted: text, token ids, a class, or one of `choices`")
    targets: list[Any] | None = None
    truth: Any = Field(None, description="with reward wrong_target: the right answer, which `target` must not be")
    choices: list[str] | None = Field(None, min_length=2, max_length=256, description="the answers of a question")
    reward: (
        Literal[
            "target",
            "agreement",
            "choice",
            "confidence",
            "margin",
            "consistency",
            "verifier",
            "wrong_target",
        ]
        | None
    ) = Field(None, description="target if one is given, else agreement")
    verifier: str | None = Field(None, description="with reward verifier: a registered one; else the server's endpoint")
    preset: Literal["default", "cola-paper", "polar-code", "drllm"] = Field(
        "default", description="the constants that budget, space, mcts and seed do not name"
    )
    budget: BudgetBody = Field(default_factory=BudgetBody)
    space: SpaceBody = Field(default_factory=SpaceBody)
    mcts: MctsBody = Field(default_factory=MctsBody)
    seed: int | None = Field(None, ge=0, lt=1 << 64, description="the preset's if left out")
    kv: Literal["exact", "reference"] = Field(
        "exact", description="reference: the authors' cache, one per layer; wrong for repeats, never certified"
    )
    top_k: int = Field(5, ge=1, le=100, description="best chains, and chains of the Pareto front, to report")
    max_new_tokens: int = Field(64, ge=1, le=1 << 20)
    remember: bool = Field(False, description="keep certified chains for /predict with chain 'memory'")
    include_tree: bool = Field(False, description="report the most visited nodes of the tree, for drawing")
    stream: bool = False


class ChainOutcome(BaseModel):
    """A chain that was run alone."""

    chain: list[int]
    reward: float
    text: str
    length: int
    certified: bool


class ParetoChain(BaseModel):
    """A chain with its reward; on the Pareto front, one no other beats in both reward and length."""

    chain: list[int]
    reward: float
    length: int


class SearchTreeNode(BaseModel):
    """One chain of the tree. Depth is in edits, children are places in the list of nodes."""

    chain: list[int]
    depth: int
    visit_count: int
    mean_reward: float
    children: list[int]


class SearchStats(BaseModel):
    """What a search cost."""

    simulations: int
    distinct_chains: int
    layer_evaluations: int
    layer_evaluations_naive: int
    seconds: float


class SearchResult(BaseModel):
    """What a search found for one sample. `oracle` says that the label was used."""

    oracle: bool
    reward: str
    stopped_by: str
    deterministic: bool
    full: ChainOutcome
    best: ChainOutcome
    pareto: list[ParetoChain]
    top: list[ParetoChain] = Field(description="the best chains: highest reward, then shortest")
    stats: SearchStats
    tree: list[SearchTreeNode] | None = None
    remembered: str | None = Field(None, description="id under /cola/chains; null if not asked for or not certified")


class SearchUsed(BaseModel):
    """Which model was searched, and with which constants: the preset's and those the request named."""

    model: str
    version: str
    id: str
    preset: str
    space: SpaceBody
    mcts: MctsBody
    budget: BudgetBody
    seed: int
    kv: Literal["exact", "reference"] = Field(description="reference: computed with the authors' cache, not as served")


class SearchResponse(SearchUsed, SearchResult):
    """The result of a search of one sample."""


class SearchesResponse(SearchUsed):
    """The results of several samples, in order."""

    results: list[SearchResult]

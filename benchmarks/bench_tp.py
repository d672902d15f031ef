"""What residual forms take over tensor parallel ranks: measured with made-up times, and predicted for GPU nodes.

Measured: decode steps of a Llama of random weights (12 layers) on two ranks over gloo, whose attention takes 2 ms and
whose MLP 4 ms asleep, with all-reduces of 0.5 to 16 ms on one serial channel; the best of fifteen passes, beside what
the latency model makes of the parts. It is the schedule of the real sharded layers, and nothing of a GPU.
Predicted: decode on eight GPUs from the published logs of Ladder Residual (github.com/mayank31398/
ladder-residual-inference), no GPU used: compute is the logs' upper bound less the head, split between attention and MLP
by their weights; the all-reduce is what standard lost to it. `modern` puts today's one-shot all-reduces in that engine.
A measured form more than a tenth off the model at 8 ms, or a predicted gain more than a tenth off the published one
at one row, would mean that the model must not choose a form.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from report import report

from models.lm.config import LMConfig
from models.parallel.latency import FORMS, Costs, crossings, fastest, gains, predicted
from models.parallel.timing import measure
from models.parallel.trial import Trial

ROWS = (1, 4, 16, 64)
LAYERS = {"8B": 32, "70B": 80}
# Attention's part of a layer's compute at one row.
ATTENTION = {"8B": 0.41, "70B": 0.30}
# The head, which that engine reads whole on every GPU, and what a GPU reads a second.
HEAD_GB = {"8B": 1.05, "70B": 2.10}
TB_PER_S = {"H100": 3.35, "H200": 4.8}
OVERHEAD_US = 5.5
LEAN_OVERHEAD_US = 2.0

TRIAL = Trial(
    LMConfig(256, 64, 128, 12, 4, 4, 64),
    phases=("decode",),
    prompt_tokens=16,
    repeats=15,
    latencies_s=(0.0005, 0.002, 0.004, 0.008, 0.016),
    module_s=(0.002, 0.004),
)


@dataclass(frozen=True, slots=True)
class Node:
    """Eight GPUs and one model: compute of a step in ms and an all-reduce in us for each of ROWS.

    published: standard's time over ladder's in the logs, where there are any.
    """

    gpu: str
    network: str
    model: str
    compute_ms: tuple[float, ...]
    all_reduce_us: tuple[float, ...]
    published: tuple[float, ...] = ()
    overhead_us: float = OVERHEAD_US

    def costs(self, place: int) -> Costs:
        """What a step of ROWS[place] is made of."""
        head_s = HEAD_GB[self.model] / TB_PER_S[self.gpu] / 1000
        layer_s = (self.compute_ms[place] / 1000 - head_s) / LAYERS[self.model]
        part = ATTENTION[self.model]
        all_reduce_s = self.all_reduce_us[place] * 1e-6
        return Costs(part * layer_s, (1 - part) * layer_s, all_reduce_s, self.overhead_us * 1e-6, head_s)


H100 = {"8B": (2.098, 2.685, 3.168, 4.441), "70B": (8.945, 10.856, 12.854, 19.391)}
# The same with the part that reads memory a third shorter, as the H200's is.
H200 = {"8B": (1.84, 2.43, 2.89, 4.07), "70B": (7.21, 9.10, 11.05, 17.36)}
NO_P2P = {"8B": (2.122, 2.706, 3.219, 4.461), "70B": (9.085, 10.710, 12.75, 19.269)}
NCCL = {"8B": (22.8, 25.9, 26.1, 27.3), "70B": (24.0, 25.8, 26.3, 31.4)}
HOST = {"8B": (49.7, 67.8, 80.7, 89.0), "70B": (63.3, 73.8, 88.0, 120.8)}
MODERN = {"8B": (7.0, 8.0, 8.0, 11.0), "70B": (7.0, 8.0, 10.0, 14.0)}
SAID = {"8B": (1.425, 1.456, 1.389, 1.268), "70B": (1.312, 1.289, 1.190, 1.156)}
SAID_NO_P2P = {"8B": (1.370, 1.407, 1.398, 1.259), "70B": (1.505, 1.576, 1.353, 1.376)}


def nodes() -> Iterator[Node]:
    """Every node and model that something is known of."""
    for model in LAYERS:
        yield Node("H100", "NVLink, NCCL of 2024", model, H100[model], NCCL[model], SAID[model])
        yield Node("H100", "no P2P", model, NO_P2P[model], HOST[model], SAID_NO_P2P[model])
        yield Node("H200", "NVLink, NCCL of 2024", model, H200[model], NCCL[model])
        for gpu, compute in (("H100", H100), ("H200", H200)):
            modern = Node(gpu, "NVLink, modern", model, compute[model], MODERN[model])
            yield modern
            yield replace(modern, network="modern, overhead 2 us", overhead_us=LEAN_OVERHEAD_US)


def measured() -> list[dict[str, object]]:
    """One row per form and all-reduce time."""
    return [
        {
            "all-reduce, ms": 1000 * (one.latency_s or 0.0),
            "form": one.form,
            "ms": 1000 * one.best_s,
            "model, ms": 1000 * one.predicted_s,
            "off, %": 100 * one.error,
            "all-reduces": one.num_all_reduces,
            "exposed, ms": 1000 * (one.exposed_s or 0.0),
        }
        for one in measure(TRIAL)
    ]


def foretold(node: Node, place: int) -> dict[str, object]:
    """Gains over standard, and from which all-reduce time on a ladder has one."""
    num_layers, costs = LAYERS[node.model], node.costs(place)
    found = gains(num_layers, costs)
    spans = fastest(num_layers, costs)
    return {
        "node": f"{node.gpu}, {node.network}",
        "model": node.model,
        "rows": ROWS[place],
        "L, us": node.all_reduce_us[place],
        "standard, ms": 1000 * predicted(FORMS["standard"], range(num_layers), costs),
        "ladder": found["ladder"],
        "published": node.published[place] if node.published else "-",
        "parallel": found["parallel"],
        "desync-4x": found["desync-4x"],
        "upper bound": found["upper-bound"],
        "ladder pays from, us": 1e6 * min(crossings(FORMS["standard"], FORMS["ladder"], num_layers, costs)),
        "fastest": [name for start, name in spans if start <= costs.all_reduce_s][-1],
    }


def main() -> None:
    """Both tables."""
    rows = [foretold(node, place) for node in nodes() for place in range(len(ROWS))]
    report("predicted decode on eight GPUs, no GPU used: gains over standard", rows)
    report("residual forms on two ranks over gloo, modules of 2 and 4 ms", measured(), latencies="injected")


if __name__ == "__main__":
    main()

"""Rotary positions of an ONNX graph as the operator that ONNX has for them since opset 23. Knows no model.

What `models.lm.attention.rotate` becomes is seven operators for queries and as many for keys, each hardly more than a
call: at one row and one token a call costs more than what it computes.
"""

from typing import Any

import onnx
import onnxscript.optimizer
from onnxscript import ir
from onnxscript.rewriter import pattern

OPSET = 23


class _Rotate(pattern.RewriteRuleClassBase):
    """Half-split pairs of x [B, heads, S, R] turned by angles; cosine and sine [B, S, R] have each of them twice."""

    def __init__(self) -> None:
        super().__init__(name="rotate", remove_nodes=False)  # queries and keys share some of them

    def pattern(self, op: Any, x: Any, cosine: Any, sine: Any) -> Any:
        first, second = op.Split(x, num_outputs=2, axis=3, _outputs=2)
        turned = op.Concat(op.Neg(second), first, axis=-1)
        return x * op.Unsqueeze(cosine, [1]) + turned * op.Unsqueeze(sine, [1])

    def check(self, context: Any, *, x: ir.Value, cosine: ir.Value, sine: ir.Value) -> bool:  # type: ignore[override]
        """Every row with angles of its own: ONNX Runtime's operator does not share those of one among all."""
        return x.shape is not None and cosine.shape is not None and x.shape[0] == cosine.shape[0]

    def rewrite(self, op: Any, x: Any, cosine: Any, sine: Any) -> Any:
        once = [op.Split(angles, num_outputs=2, axis=2, _outputs=2)[0] for angles in (cosine, sine)]  # [B, S, R / 2]
        return op.RotaryEmbedding(x, *once)


def optimize(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph as onnxscript simplifies it, with rotary positions in one operator where its opset has that."""
    model = ir.from_proto(graph)
    onnxscript.optimizer.optimize(model)
    rules = pattern.RewriteRuleSet([_Rotate.rule()])  # type: ignore[no-untyped-call]
    if graph.opset_import[0].version >= OPSET and rules.apply_to_model(model):
        onnxscript.optimizer.remove_unused_nodes(model)
    found: onnx.ModelProto = ir.to_proto(model)
    return found

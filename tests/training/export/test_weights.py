from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from training.config import ExportConfig
from training.export.onnx_graph import GraphBuilder
from training.export.weights import ExportError, as_stored

EXPORT = ExportConfig(weights="float16", tables="int8")
WEIGHTS = {
    "table": torch.tensor([[1.0, -0.5], [0.001, 0.0003], [0.0, 0.0]]),
    "other": torch.tensor([[1.0, 1 / 3]]),
    "count": torch.tensor([7]),
}


def test_a_table_is_rounded_by_row_and_other_weights_as_they_are_stored() -> None:
    stored = as_stored(WEIGHTS, EXPORT, ("table",))
    rows = stored["table"]
    assert rows.dtype == torch.float32
    assert rows[:, 0].tolist() == pytest.approx([1.0, 0.001, 0.0])
    assert rows[0, 1].item() == pytest.approx(-64 / 127)
    assert rows[1, 1].item() == pytest.approx(0.001 * 38 / 127)
    assert torch.equal(stored["other"], WEIGHTS["other"].half().float())
    assert stored["count"] is WEIGHTS["count"]


def test_the_graph_looks_up_the_rows_that_the_original_has() -> None:
    table = torch.randn(50, 16, generator=torch.Generator().manual_seed(3))
    rounded = as_stored({"table": table}, EXPORT, ("table",))["table"].numpy()
    graph = GraphBuilder("float16")
    found = graph.look_up("table", rounded, graph.input("ids", "int64", ["B", "T"]), "int8")
    graph.output(found, "y", "float32", ["B", "T", 16])
    model = graph.model("table").SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    ids = np.array([[0, 49], [7, 7]])
    np.testing.assert_allclose(session.run(None, {"ids": ids})[0], rounded[ids], rtol=3e-7)
    assert len(model) < 2 * table.numel()


def test_a_model_without_such_a_table_is_no_export() -> None:
    with pytest.raises(ExportError, match="no table that is only looked up"):
        as_stored(WEIGHTS, EXPORT)

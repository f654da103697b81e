"""Measured steps of served models, and the questions that they answer.

Rows come from `serving.csv` (one device) and `serving_parallel.csv` (two, tensor parallel), written by
`costmodels.calibration`: one prefill or one decode step of plain PyTorch each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from costmodels.measurements import rows_of

_SIZES = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "gpu")


def measured_serving(root: Path, name: str = "serving") -> tuple[dict[str, str], ...]:
    """Rows under CUDA graphs of the files of that name below `root`, one folder a machine; seconds and tokens."""
    return tuple(row for row in rows_of(root, name) if row["launch"] == "graph")


def question(row: Mapping[str, str]) -> dict[str, str]:
    """A measured step as a row to predict, a static batch: its decode step is the one that follows seq − 1 tokens."""
    decode = row["op"] == "decode"
    ranks = row.get("ranks") or "1"
    return {name: row[name] for name in _SIZES} | {
        "isl": str(int(row["seq"]) - decode),
        "osl": "2" if decode else "1",
        "model": "measured",
        "gated": str(row["style"] == "llama"),
        "tied_embeddings": "false",
        "n_gpus": ranks,
        "tp": ranks,
        "stack": "torch-graph",
        "precision": row["dtype"],
        "concurrency": row["batch"],
        "static_batch": "true",
    }


def signed_error(row: Mapping[str, str], answer: Mapping[str, str]) -> float:
    """How far the answer to a row's question lies from what was measured, relative; above 0 where it is too slow."""
    predicted = float(answer["tpot_s" if row["op"] == "decode" else "ttft_s"])
    return predicted / float(row["time_s"]) - 1.0

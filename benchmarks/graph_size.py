"""Nodes per family, before (another package's model, torch.onnx.export) and after (ours, vitdeploy export).

    python benchmarks/graph_size.py                # all of them, about 10 minutes on 2 cores
    python benchmarks/graph_size.py swin swin_v2   # these, the other rows stay

The graphs of ours are those that ``benchmarks/matrix.py`` exported last, from ``benchmarks/results/matrix.json``.
Results go to ``benchmarks/results/nodes.json``, and ``docs/graph-size.md`` is rendered from it. Ends with 1 where a
graph of ours has an operator that it should not have.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
import warnings
from collections import Counter
from typing import Any

import numpy as np
from matrix import VARIANTS
from support_tables import (
    FAMILIES,
    MATRIX_RESULTS,
    NODE_RESULTS,
    misses_of_nodes,
    read_results,
    render_all,
    write_results,
)

from vitdeploy import environment
from vitdeploy.exporting.tracing import TRACED_BATCH, trace
from vitdeploy.sources.load import load_source

OPSET = 20
BLOCKS_OF = "vit_tiny_patch16_224"
REFERENCES = {
    "vit": ("timm", "vit_tiny_patch16_224"),
    "deit": ("timm", "deit_tiny_distilled_patch16_224"),
    "hybrid": ("timm", "vit_tiny_r_s16_p8_224"),
    "tnt": ("timm", "tnt_s_legacy_patch16_224"),
    "pvt": ("Hugging Face", "PvtForImageClassification"),
    "pvt_v2": ("timm", "pvt_v2_b0"),
    "swin": ("timm", "swin_tiny_patch4_window7_224"),
    "swin_v2": ("timm", "swinv2_tiny_window8_256"),
}
"""timm's legacy TNT is the published architecture; T2T-ViT and PatchConvNet are in no package installed here."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="family", help=f"some of {', '.join(FAMILIES)}")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in FAMILIES]
    if unknown:
        parser.error(f"there is no family {unknown[0]!r}, expected some of {', '.join(FAMILIES)}")
    names = [name for name in FAMILIES if name in (arguments.names or FAMILIES)]
    failed = [name for name in names if not report_nodes(name)]
    if "vit" in names:
        write_results(NODE_RESULTS, {**read_results(NODE_RESULTS), "vit_block": one_block()})
    render_all()
    sys.exit(1 if failed else 0)


def report_nodes(family: str) -> bool:
    """Count one family, add its row to the results at once, and return whether our graph is as expected."""
    start = time.monotonic()
    row = {"family": family, "model": VARIANTS[family], "before": before(family), "after": after(family)}
    results = read_results(NODE_RESULTS)
    rows = {entry["family"]: entry for entry in results.get("rows", [])} | {family: row}
    versions = environment.versions()
    versions.update({name: found for name in ("timm", "transformers", "onnxscript") if (found := installed(name))})
    ordered = [rows[name] for name in FAMILIES if name in rows]
    write_results(NODE_RESULTS, {**results, "opset": OPSET, "versions": versions, "rows": ordered})
    misses = misses_of_nodes(row)
    nodes = f"{row['before'].get('nodes', '–')} → {row['after']['nodes']} nodes"
    print(f"{family:13} {time.monotonic() - start:4.0f} s: {nodes}; {'; '.join(misses) or 'as expected'}", flush=True)
    return not misses


def installed(name: str) -> str:
    from importlib.metadata import version

    return version(name)


def before(family: str) -> dict[str, Any]:
    """Return the graph of another package's model as torch.onnx.export writes it."""
    if family not in REFERENCES:
        return {"source": "–", "reason": "in no package that is installed"}
    package, name = REFERENCES[family]
    source = f"{package}'s `{name}`"
    try:
        return {"source": source, **exporter_counts(reference(package, name))}
    except Exception as error:  # the exporter raises from every layer of the compiler
        text = str(error).strip().splitlines()
        return {"source": source, "reason": f"not exported: {text[0][:120] if text else type(error).__name__}"}


def reference(package: str, name: str, **arguments: Any) -> Any:
    """Return a model of another package, in evaluation mode."""
    if package == "timm":
        import timm

        return timm.create_model(name, **arguments).eval()
    import torch
    import transformers

    config = transformers.PvtConfig(num_labels=1000)
    model = getattr(transformers, name)(config).eval()

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Any) -> Any:
            return self.model(pixel_values=x).logits

    return Logits().eval()


def exporter_counts(model: Any) -> dict[str, Any]:
    """Return how many nodes torch.onnx.export with its own optimizer gives, by operator."""
    import torch

    size = getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))
    dimensions = ({0: torch.export.Dim("batch")},)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            model,
            (torch.randn(TRACED_BATCH, *size),),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=dimensions,
            verbose=False,
        )
    return counted(exported.model)


def after(family: str) -> dict[str, Any]:
    """Return the graph of ours as the last ``benchmarks/matrix.py`` exported it, and what is to be said against it."""
    rows = {row["family"]: row for row in read_results(MATRIX_RESULTS).get("rows", [])}
    export = rows.get(family, {}).get("export", {})
    if "operators" not in export:
        sys.exit(f"{MATRIX_RESULTS.name} has no exported graph of {family!r}: python benchmarks/matrix.py {family}")
    return {name: export[name] for name in ("nodes", "operators", "findings")}


def counted(graph: Any) -> dict[str, Any]:
    """Return the number of nodes and of each operator, subgraphs and functions of the model included."""
    nodes = list(graph.graph.all_nodes())
    nodes += [node for function in graph.functions.values() for node in function]
    operators = Counter(node.op_type for node in nodes)
    return {"nodes": len(nodes), "operators": dict(sorted(operators.items()))}


def one_block() -> dict[str, Any]:
    """Return the operators of one encoder block: a ViT of 12, less one of 11."""
    timm = [exporter_counts(reference("timm", BLOCKS_OF, depth=depth))["operators"] for depth in (12, 11)]
    return {"before": difference(*timm), "after": difference(*(operators_of_ours(depth) for depth in (12, 11)))}


def operators_of_ours(depth: int) -> dict[str, int]:
    loaded = load_source(BLOCKS_OF, random_weights=True, arguments={"depth": depth})
    images = np.zeros((TRACED_BATCH, loaded.preprocess.channels, *loaded.preprocess.size), np.float32)
    operators: dict[str, int] = counted(trace(loaded.module, images, BLOCKS_OF))["operators"]
    return operators


def difference(larger: dict[str, int], smaller: dict[str, int]) -> dict[str, int]:
    return {name: count - smaller.get(name, 0) for name, count in larger.items() if count != smaller.get(name, 0)}


if __name__ == "__main__":
    main()

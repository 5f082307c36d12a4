"""Outliers planted into a trained graph without changing its function: a few channels grow, their readers shrink."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx_ir as ir
from present import present

from vitdeploy.graph.insert_qdq import new_initializer
from vitdeploy.graph.linear_groups import LinearGroup, find_linear_groups
from vitdeploy.quantization.prepared import prepare


def outlier_factors(width: int, *, count: int = 4, largest: float = 1000.0, seed: int = 0) -> np.ndarray:
    """Return [width] factors: 1 but for ``count`` channels, which get 30 to ``largest`` in equal ratios."""
    factors = np.ones(width, np.float32)
    chosen = np.random.default_rng(seed).choice(width, count, replace=False)
    factors[chosen] = np.geomspace(30.0, largest, count)
    return factors


def norm_outliers(model: ir.Model, **factors: Any) -> ir.Model:
    """Grow channels of γ and β of every LayerNorm that feeds linears, and shrink the rows that read them."""
    model = prepare(model)
    for seed, group in enumerate(_linears_after(model, "LayerNormalization")):
        factor = outlier_factors(group.linears[0].in_features, seed=seed, **factors)
        norm = present(group.activation.producer())
        for value in norm.inputs[1:]:
            _multiply(present(value), factor)
        _divide_rows(group, factor)
    return model


def weight_outliers(model: ir.Model, name: str, factor: float = 1000.0) -> ir.Model:
    """Grow one row of a group's weight, which widens the range of every output, and shrink that channel in the norm."""
    model = prepare(model)
    (group,) = (group for group in _linears_after(model, "LayerNormalization") if group.name == name)
    factors = np.ones(group.linears[0].in_features, np.float32)
    factors[3] = 1 / factor
    for value in present(group.activation.producer()).inputs[1:]:
        _multiply(present(value), factors)
    _divide_rows(group, factors)
    return model


def gelu_outliers(model: ir.Model, **factors: Any) -> ir.Model:
    """Put a Mul per channel behind every GELU, and shrink the rows of fc2."""
    model = prepare(model)
    for seed, group in enumerate(_linears_after(model, "Gelu")):
        explicit_outliers(model, group, outlier_factors(group.linears[0].in_features, seed=seed, **factors))
    return model


def explicit_outliers(model: ir.Model, group: LinearGroup, factor: np.ndarray) -> None:
    """Put a Mul by ``factor`` in front of a group and shrink the rows of its weights."""
    value = group.activation
    constant = new_initializer(model.graph, f"{value.name}.outliers", factor)
    node = ir.node("Mul", [value, constant], name=f"{value.name}/Outliers")
    node.outputs[0].name = f"{value.name}.grown"
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    model.graph.insert_after(present(value.producer()), node)
    for reader, index in group.uses:
        reader.replace_input_with(index, node.outputs[0])
    _divide_rows(group, factor)


def value_outliers(model: ir.Model, **factors: Any) -> ir.Model:
    """Grow columns of v (the last third of a packed qkv) and shrink the rows of proj: outliers in front of proj."""
    model = prepare(model)
    groups = find_linear_groups(model)
    for seed, (packed, proj) in enumerate(itertools.pairwise(groups)):
        if not packed.name.endswith("qkv") or not proj.name.endswith("proj"):
            continue
        width = proj.linears[0].in_features
        factor = outlier_factors(width, seed=seed, **factors)
        (linear,) = packed.linears
        grown = np.concatenate([np.ones(2 * width, np.float32), factor])
        _multiply(linear.weight, grown if linear.channel_axis == 1 else grown[:, None])
        bias = linear.node.outputs[0].consumers()[0]
        if linear.node.op_type == "Gemm":
            _multiply(present(linear.node.inputs[2]), grown)
        elif bias.op_type == "Add":
            _multiply(next(value for value in bias.inputs if value is not None and value.is_initializer()), grown)
        _divide_rows(proj, factor)
    return model


def _linears_after(model: ir.Model, op_type: str) -> list[LinearGroup]:
    groups = [group for group in find_linear_groups(model) if not group.obstacle]
    return [group for group in groups if present(group.activation.producer()).op_type == op_type]


def _multiply(value: ir.Value, factor: np.ndarray) -> None:
    array = (present(value.const_value).numpy() * factor).astype(np.float32)
    value.const_value = ir.tensor(array, name=value.name)


def _divide_rows(group: LinearGroup, factor: np.ndarray) -> None:
    for linear in group.linears:
        _multiply(linear.weight, 1 / factor[:, None] if linear.channel_axis == 1 else 1 / factor)

"""Where one row is faster or slower than another: two profiles, part by part and layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

from vitdeploy.records import LayerCost, LayerProfile, Row
from vitdeploy.records.layer_profile import PARTS, LayerChange, PartChange, ProfileChange

SHOWN = 10
EIGHT_BITS = ("int8", "fp8", "mixed", "int8-weight-only")


def compare_profiles(before: Row, after: Row) -> ProfileChange | None:
    """Return what differs between two rows, the layers with the largest difference first; None without two profiles."""
    old, new = before.layer_profile, after.layer_profile
    if old is None or new is None:
        return None
    layers = sorted(_layers(old, new), key=lambda change: -abs(change.after_ms - change.before_ms))
    return ProfileChange(
        before=before.name,
        after=after.name,
        before_ms=old.layers_ms,
        after_ms=new.layers_ms,
        parts=tuple(part_changes(old, new)),
        layers=tuple(layers[:SHOWN]),
    )


def part_changes(before: LayerProfile, after: LayerProfile) -> list[PartChange]:
    """Return the parts that either profile has, in the order of ``PARTS``."""
    old, new = before.by_part(), after.by_part()
    return [
        PartChange(part=part, before_ms=old.get(part, 0.0), after_ms=new.get(part, 0.0))
        for part in PARTS
        if part in old or part in new
    ]


def rival_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """Return the profiled row that an 8-bit row is held against: FP16, else FP32, on the same runtime and device."""
    if row.layer_profile is None or row.precision not in EIGHT_BITS:
        return None
    beside = [
        one
        for one in rows
        if one.layer_profile is not None
        and one.layer_profile.batch == row.layer_profile.batch
        and (one.backend, one.provider, one.device) == (row.backend, row.provider, row.device)
    ]
    return next((one for high in ("fp16", "fp32") for one in beside if one.precision == high), None)


def _layers(before: LayerProfile, after: LayerProfile) -> list[LayerChange]:
    """Return groups of layers that share a node of the model, directly or through another layer."""
    layers = [(False, layer) for layer in before.layers] + [(True, layer) for layer in after.layers]
    groups: list[list[tuple[bool, LayerCost]]] = []
    place: dict[str, int] = {}
    for side, layer in layers:
        joined = sorted({place[source] for source in layer.sources if source in place})
        index = joined[0] if joined else len(groups)
        if not joined:
            groups.append([])
        groups[index].append((side, layer))
        for other in joined[1:]:
            groups[index].extend(groups[other])
            groups[other] = []
        for source, where in place.items():
            if where in joined[1:]:
                place[source] = index
        place.update(dict.fromkeys(layer.sources, index))
    return [_change(group) for group in groups if group]


def _change(group: Sequence[tuple[bool, LayerCost]]) -> LayerChange:
    old, new = ([layer for side, layer in group if side is later] for later in (False, True))
    largest = max((layer for _, layer in group), key=lambda layer: layer.ms)
    return LayerChange(
        part=largest.part,
        before=tuple(_text(layer) for layer in old),
        after=tuple(_text(layer) for layer in new),
        before_ms=sum(layer.ms for layer in old),
        after_ms=sum(layer.ms for layer in new),
    )


def _text(layer: LayerCost) -> str:
    return f"{layer.name} ({layer.operator} {layer.precision})"

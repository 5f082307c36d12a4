"""From a weight file of any dialect to a model with every tensor in its place."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy import catalog
from vitdeploy.catalog import Variant
from vitdeploy.checkpoints.candidates import AVERAGES, Candidate, common_root, find_candidates, same_shapes, unknown
from vitdeploy.checkpoints.converted import Converted
from vitdeploy.checkpoints.dialects import Dialect
from vitdeploy.checkpoints.evidence import Evidence, evidence_of, stated_for_timm
from vitdeploy.checkpoints.files import OpenedFile, Tensors, WeightFile, open_weights
from vitdeploy.checkpoints.huggingface import ONNX_ROUTE
from vitdeploy.checkpoints.layouts import swin
from vitdeploy.checkpoints.layouts.vit import OTHER_BUILDER
from vitdeploy.checkpoints.matching import check_match, check_numbers, is_of_classes
from vitdeploy.checkpoints.positions import resize_positions
from vitdeploy.checkpoints.preprocessing import preprocess_of_weights
from vitdeploy.checkpoints.stated import read_with, stated_arguments
from vitdeploy.datasets.class_names import usable_class_names
from vitdeploy.errors import CheckpointError, ModelError
from vitdeploy.records import ModelSpec, Preprocess
from vitdeploy.wording import adoption

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LoadRequest:
    """What the user asks of a load.

    ``image_size`` resizes position tables once, by the rule of the checkpoint's own code. ``num_classes`` other than
    the file's needs ``reset_head``, which draws a fresh head; ``head_for`` is the number of classes of a training,
    which keeps a head for as many and draws any other. ``headless`` takes weights without a head, or with one that the
    model does not have, as they are: features in place of logits. ``named_classes`` says that the names of the classes
    come from elsewhere, whatever the configuration calls them. ``arguments`` replace constructor ones (``qk_scale``,
    ``heads`` where the keys cannot tell).
    """

    image_size: int | tuple[int, int] | None = None
    num_classes: int | None = None
    reset_head: bool = False
    head_for: int | None = None
    headless: bool = False
    named_classes: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def named(self) -> dict[str, Any]:
        """Every constructor argument that was named."""
        named = dict(self.arguments)
        if self.image_size is not None:
            named["image_size"] = self.image_size if isinstance(self.image_size, int) else list(self.image_size)
        return named


@dataclass(frozen=True)
class LoadedWeights:
    """A model in eval mode with the file's weights, and everything that was decided on the way, in words."""

    module: nn.Module
    spec: ModelSpec
    preprocess: Preprocess
    dialect: str
    reason: str
    notes: tuple[str, ...]


def load_foreign(path: Path, name: str | None = None, request: LoadRequest = LoadRequest()) -> LoadedWeights:
    """Load a checkpoint of any dialect into our model of the same family.

    Of several models in one file (raw and averaged weights, a teacher) the first that fits is taken, averages first.

    Args:
        path: A weight file, or a model's folder.
        name: A catalogue variant, by any of its names, or a family whose remaining arguments ``request`` gives. A
            Hugging Face folder needs none, nor does a file that says its architecture or fits one variant only.
        request: See ``LoadRequest``.
    Raises:
        CheckpointError: The dialect is unknown, the weights are of another variant, or a tensor has no place.
        ModelError: ``name`` is not in the catalogue, or the image size is one that the family cannot take.
    """
    opened = open_weights(Path(path))
    candidates = find_candidates(opened)
    if not candidates:
        raise _with_name_of_timm(unknown(opened.below(common_root(opened))), opened)
    first: CheckpointError | ModelError | None = None
    for candidate in candidates:
        try:
            loaded, notes = _load(_without_named(candidate, candidates), name, request)
        except (CheckpointError, ModelError) as error:
            first = first or error
            continue
        passed = candidates[: candidates.index(candidate)]
        return _with_notes(loaded, [*_choice(candidate, candidates, passed), *notes])
    assert first is not None
    raise _with_name_of_timm(first, opened) if "does not fit the model" in str(first) else first


def _with_name_of_timm(error: CheckpointError | ModelError, opened: OpenedFile) -> CheckpointError | ModelError:
    """Return an error with the model of timm that the file says it is, where it says one: timm builds it."""
    stated = stated_for_timm(opened.beside)
    if stated is None or f"timm:{stated[0]}" in str(error):
        return error
    text = str(error).replace("'timm:NAME'", f"'timm:{stated[0]}'")
    if text == str(error):
        text += f"; its {stated[1]} is {stated[0]!r}: the source 'timm:{stated[0]}' with weights='FILE' builds that"
    return CheckpointError(text)


def _with_notes(loaded: LoadedWeights, notes: list[str]) -> LoadedWeights:
    reason = f"{loaded.dialect} weights of {loaded.spec.family}, because {loaded.reason}"
    return LoadedWeights(loaded.module, loaded.spec, loaded.preprocess, loaded.dialect, loaded.reason, (reason, *notes))


def _choice(taken: Candidate, candidates: list[Candidate], passed: list[Candidate]) -> list[str]:
    """Say which of several tables was taken, and which others there are."""
    notes = []
    place = _place(taken.file)
    if place:
        notes.append(f"took the weights under {place!r}")
    for other in passed:
        notes.append(f"the weights under {_place(other.file)!r} do not fit")
    same = [_place(one.file) for one in candidates if one not in (*passed, taken) and same_shapes(one, taken)]
    if same:
        averaged = any(AVERAGES.fullmatch(part) for part in place.split("."))
        why = "averaged weights are preferred to raw ones" if averaged else "a file with those alone gives them"
        notes.append(f"those under {', '.join(map(repr, same))} fit, too: {why}")
    return notes


def _without_named(taken: Candidate, candidates: list[Candidate]) -> Candidate:
    """Return a table whose tensors of the other tables that ``_choice`` names are none that stand beside it."""
    passed = candidates[: candidates.index(taken)]
    named = [one for one in candidates if one is not taken and (one in passed or same_shapes(one, taken))]
    places = tuple(f"{place}." for place in (_place(one.file) for one in named) if place)
    left = tuple(name for name in taken.file.left_out if not name.startswith(places))
    return replace(taken, file=replace(taken.file, left_out=left))


def _place(file: WeightFile) -> str:
    return ".".join(part for part in (file.entry, file.prefix.removesuffix(".")) if part)


def _load(candidate: Candidate, name: str | None, request: LoadRequest) -> tuple[LoadedWeights, list[str]]:
    from vitdeploy.models import model_from_spec

    file, dialect = candidate.file, candidate.dialect
    evidence = evidence_of(file)
    converted = dialect.converted(file, {**read_with(evidence.arguments), **request.named})
    notes = _dropped(file, converted)
    converted = _with_stated(converted, dialect.family, evidence, file, request, notes)
    variant = _variant(name, dialect.family, converted, evidence, file, notes)
    arguments = _arguments(variant, converted, request, file, notes)
    if name in (None, dialect.family) and not converted.complete and evidence.variant is None:
        notes += _unseen(dialect, arguments, request)
    label = variant.name if variant is not None else file.path.resolve().name
    spec = ModelSpec(family=dialect.family, name=label, arguments=arguments)
    if not request.named_classes and spec.arguments["num_classes"]:
        classes, problem = usable_class_names(file.config, "config.json", spec.arguments["num_classes"])
        spec = spec.model_copy(update={"classes": classes})
        notes += [problem] * bool(problem)
    module = model_from_spec(spec)
    _check_tables(converted, module, request, file)
    if dialect.name in _SHIFT_BY_SIDE:
        _check_oblong(module, dialect.name, file)
    tensors = _fitted(dict(converted.tensors), module, converted, request, notes)
    _assign(module, tensors, f"{str(file.path)!r} as {label}", lambda: _hint(dialect, tensors, module, variant))
    preprocess = preprocess_of_weights(variant, converted, evidence, file, arguments, notes)
    return LoadedWeights(module.eval(), spec, preprocess, dialect.name, candidate.reason, ()), notes


def _with_stated(
    converted: Converted,
    family: str,
    evidence: Evidence,
    file: WeightFile,
    request: LoadRequest,
    notes: list[str],
) -> Converted:
    """Return the weights with the constructor arguments that the file states and no key shows.

    Raises:
        CheckpointError: The model was built with something that none here has, or with other heads or in other windows
            than those that were named.
    """
    if not evidence.arguments or evidence.elsewhere is not None:
        return converted
    ours, foreign = stated_arguments(evidence.arguments, family, converted, file.leaves)
    if foreign:
        named = evidence.architecture or "NAME"
        raise CheckpointError(
            f"{str(file.path)!r} says that its model was built with {foreign}, which {family} here has not: the source "
            f"'timm:{named}' with weights='FILE', arguments={foreign} builds it"
        )
    for key in ("heads", "pretrained_windows"):  # of weights there is one right value; a window may be another later
        before, other = ours.get(key), request.named.get(key)
        if before is not None and other is not None and not _same(key, before, other):
            raise CheckpointError(
                f"{str(file.path)!r} says that its model was built with {key}={before}, and {key} is {other!r}: "
                "leave it out of arguments="
            )
    if ours:
        notes.append(f"it says that it was built with {', '.join(f'{key}={value}' for key, value in ours.items())}")
    return replace(converted, overrides={**converted.overrides, **ours})


def _dropped(file: WeightFile, converted: Converted) -> list[str]:
    notes = [f"left out {name}: {why}" for name, why in converted.dropped.items()]
    if file.left_out:
        shown = ", ".join(file.left_out[:3]) + (f" and {len(file.left_out) - 3} more" if file.left_out[3:] else "")
        notes.append(f"left out what stands beside the model: {shown}")
    if file.head_beside:
        notes.append(f"took {file.head_beside!r}, which stands beside the model, for its head")
    return [*notes, *converted.notes]


def _variant(
    name: str | None, family: str, converted: Converted, evidence: Evidence, file: WeightFile, notes: list[str]
) -> Variant | None:
    """Return the catalogue's entry: by name, by what the file says, or as the only one that fits; None without one."""
    from vitdeploy.models import FAMILIES

    where = repr(str(file.path))
    stated = evidence.variant
    if stated is not None and (stated.family != family or not _fits(stated, converted, size=False)):
        stated = None
    if name is not None and name != family:
        if name in FAMILIES:
            raise CheckpointError(f"{where} holds weights of family {family!r}, not of {name!r}")
        variant = catalog.variant(name)
        if variant.family != family:
            raise CheckpointError(f"{where} holds weights of family {family!r}, {name} is {variant.family!r}")
        _refuse_contradiction(variant, stated, evidence, where)
        return variant
    if converted.complete:
        return None
    if stated is not None:
        notes.append(f"it is {stated.name}, as its {evidence.where} says ({evidence.architecture})")
        return stated
    if name is None and evidence.elsewhere:
        stated_name, place = evidence.elsewhere
        raise CheckpointError(
            f"{where} says in its {place} that it is {stated_name!r}, which is not in the catalogue: "
            f"the source 'timm:{stated_name}' with weights='FILE' builds it, and a name of the catalogue overrides it"
        )
    if name == family:
        return None
    entries = [entry for entry in catalog.variants().values() if entry.family == family]
    fitting = [entry for entry in entries if _fits(entry, converted)]
    fitting = fitting or [entry for entry in entries if _fits(entry, converted, size=False)]
    if len(fitting) == 1:
        notes.append(_only_one(fitting[0], converted))
        return fitting[0]
    names = ", ".join(entry.name for entry in fitting[:6])
    if not names:
        raise CheckpointError(
            f"the shapes in {where} are of no {family} in the catalogue: name the family and what the keys do not tell"
            f"{_example(family, converted)}"
        )
    raise CheckpointError(
        f"the keys of {where} do not tell which {family} it is: name it, one of {names}{_differences(fitting)}, as in "
        f"vd.export({fitting[0].name!r}, options=vd.ExportOptions(weights='FILE'))"
    )


def _differences(entries: Sequence[Variant]) -> str:
    """Return what variants that fit the same weights prepare images by, where that is not the same."""
    specs = [entry.preprocess.model_dump(exclude={"source"}) for entry in entries]
    differ = [name for name in specs[0] if any(spec[name] != specs[0][name] for spec in specs)]
    return f" (they differ in {', '.join(differ)})" if differ else ""


def _unseen(dialect: Dialect, arguments: Mapping[str, Any], request: LoadRequest) -> list[str]:
    """Return the note on what weights do not show where neither a name nor a configuration states the model."""
    from vitdeploy.models import family_class

    if dialect.name in _ALWAYS_THE_SAME:
        return []
    eps = arguments.get("eps", inspect.signature(family_class(dialect.family)).parameters["eps"].default)
    norms = "" if "eps" in request.arguments else f" and norms with an epsilon of {eps:g}"
    where = " (arguments={'eps': VALUE} where it was another)" if norms else ""
    other = ONNX_ROUTE if dialect.name == "Hugging Face" else OTHER_ACTIVATION
    return [f"took the exact GELU{norms}{where}, which no key shows: of a model with another activation, {other}"]


OTHER_ACTIVATION = (
    "the source 'timm:NAME' with arguments={'act_layer': 'NAME'} builds one of timm's, and torch.onnx.export writes "
    f"any as it is, which {adoption('MODEL.onnx')} adopts"
)
_ALWAYS_THE_SAME = (
    "torchvision",
    "vit-pytorch",
    "Google JAX",
)  # these code bases leave neither to whoever builds a model


def _only_one(variant: Variant, converted: Converted) -> str:
    """Return the note on a variant that was chosen by its shapes, with what these do not tell."""
    unproven = [f"{key}={variant.arguments[key]}" for key in converted.unknown if key in variant.arguments]
    rest = f", whose {' and '.join(unproven)} the keys do not tell" if unproven else ""
    return f"took it for {variant.name}, the only one of its shapes in the catalogue{rest}"


def _refuse_contradiction(variant: Variant, stated: Variant | None, evidence: Evidence, where: str) -> None:
    """Refuse a name that differs from the file's own in what no key shows: heads, windows."""
    if stated is None or stated.name == variant.name:
        return
    for key in (variant.arguments.keys() | stated.arguments.keys()) - {"image_size"}:
        if variant.arguments.get(key) != stated.arguments.get(key):
            raise CheckpointError(
                f"{where} says in its {evidence.where} that it is {evidence.architecture!r}, which is {stated.name}, "
                f"and {variant.name} has another {key}: name {stated.name}"
            )


def _example(family: str, converted: Converted) -> str:
    unknown = _unknown(converted, {})
    if not unknown:
        return ""
    example = _example_of(unknown)
    return f", as in vd.export({family!r}, options=vd.ExportOptions(weights='FILE', arguments={example}))"


def _fits(entry: Variant, converted: Converted, *, size: bool = True) -> bool:
    """Return whether a variant has the arguments that shapes and tables tell; ``size``: also the image's size."""
    from vitdeploy.models import family_class

    defaults = {name: one.default for name, one in inspect.signature(family_class(entry.family)).parameters.items()}
    proven = {key: value for key, (value, _) in converted.proven.items() if size or key != "image_size"}
    stated = {key: value for key, value in {**converted.arguments, **proven}.items() if key not in _ANY}
    if entry.family == "vit" and ("layer_scale" in entry.arguments) != ("layer_scale" in converted.arguments):
        return False
    return all(_same(key, entry.arguments.get(key, defaults.get(key)), value) for key, value in stated.items())


# Arguments in which weights of one variant may differ, so that the file's value counts.
_FREE = {"representation_size", "pool", "class_token_position", "qkv_bias", "multi_token", "token_module", "channels"}
_ANY = {"num_classes", "representation_size", "layer_scale", "channels"}


def _same(key: str, one: Any, other: Any) -> bool:
    if key == "pretrained_windows":
        return (not any(one or ()) and not any(other or ())) or list(one or ()) == list(other or ())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return [float(value) for value in one] == [float(value) for value in other]
    return bool(one == other)


def _arguments(
    variant: Variant | None, converted: Converted, request: LoadRequest, file: WeightFile, notes: list[str]
) -> dict[str, Any]:
    where = repr(str(file.path))
    base = dict(variant.arguments) if variant is not None else dict(converted.arguments)
    fixed = {key: converted.arguments[key] for key in _FREE & converted.arguments.keys()}
    arguments = {**base, **fixed, **converted.overrides}
    arguments.update(_proven(variant, converted, request, arguments, where, notes))
    arguments.update(request.named)
    # A variant of the catalogue answers what it leaves out, too: with what its family does.
    missing = _unknown(converted, arguments) if variant is None else [key for key in _SIZE if key not in arguments]
    if missing:
        raise CheckpointError(
            f"the keys of {where} do not tell {' and '.join(_UNPROVEN[key][0] for key in missing)}: name the variant, "
            f"or pass arguments={_example_of(missing)}"
        )
    for key, value in converted.usual.items():
        if variant is None and key not in request.named:
            taken = f"took {key}={value}, as all published models have it"
            notes.append(f"{taken}: arguments={{{key!r}: VALUE}} if it was another")
    found = converted.arguments.get("num_classes")
    if request.head_for is not None:
        return {**arguments, "num_classes": request.head_for}
    if request.headless and (found is None or converted.head_problem):
        return {**arguments, "num_classes": 0}
    if converted.head_problem and not request.reset_head:
        raise CheckpointError(
            f"{where} cannot be taken whole: {converted.head_problem}; task='features' leaves it out, reset_head=True "
            "with arguments={'num_classes': N} draws a new head, and torch.onnx.export writes the model as it is, "
            f"which {adoption('MODEL.onnx')} adopts"
        )
    wanted = request.num_classes if request.num_classes is not None else found
    if found is None and (wanted is None or not request.reset_head):
        raise CheckpointError(
            f"{where} has no classification head: task='features' takes it as it is, reset_head=True with "
            "arguments={'num_classes': N} draws a new one"
        )
    if found is not None and wanted != found and not request.reset_head:
        raise CheckpointError(f"{where} has {found} classes, {wanted} were asked for: reset_head=True draws a new head")
    arguments["num_classes"] = wanted
    return arguments


_SIZE = ("image_size",)
# What keys may not tell: in words, and a value for an example.
_UNPROVEN: dict[str, tuple[str, Any]] = {
    "heads": ("how many heads there are", 8),
    "inner_heads": ("how many heads the inner encoder has", 4),
    "window": ("how large its windows are", 8),
    "pretrained_windows": ("in which windows it was pre-trained", [0, 0, 0, 0]),
    "image_size": ("which image size it is for", 224),
}


def _example_of(names: Sequence[str]) -> dict[str, Any]:
    """Return arguments that keys may not tell, with the values of an example."""
    return {name: _UNPROVEN[name][1] for name in names}


def _unknown(converted: Converted, arguments: Mapping[str, Any]) -> list[str]:
    """Return the arguments that change logits and that nothing tells."""
    known = {**converted.proven, **arguments}
    return [key for key in (*converted.unknown, "image_size") if key not in known]


def _proven(
    variant: Variant | None,
    converted: Converted,
    request: LoadRequest,
    arguments: Mapping[str, Any],
    where: str,
    notes: list[str],
) -> dict[str, Any]:
    """Return what the file's tables prove and the user did not name otherwise.

    Raises:
        CheckpointError: A variant was named, or a configuration says, what a table disproves.
    """
    taken: dict[str, Any] = {}
    for key, (value, table) in converted.proven.items():
        before = arguments.get(key)
        stated = before is not None or (key == "pretrained_windows" and variant is not None)  # left out means none
        if key in request.named or (stated and _same(key, before, value)):
            continue
        if key == "image_size" and variant is not None:
            notes.append(
                f"{table} is for {value}×{value} pixels and {variant.name} for others: took image_size={value}; "
                f"arguments={{'image_size': {before!r}}} resizes it"
            )
        elif key != "image_size" and (variant is not None or before is not None):
            raise CheckpointError(_disproof(variant, converted, key, where))
        taken[key] = value
    return taken


def _disproof(variant: Variant | None, converted: Converted, key: str, where: str) -> str:
    value, table = converted.proven[key]
    stated = "its config.json has another" if variant is None else f"{variant.name} has another"
    fitting = [
        entry.name
        for entry in catalog.variants().values()
        if variant is not None and entry.family == variant.family and _fits(entry, converted)
    ]
    proven = {key: value}
    advice = f"name {' or '.join(fitting[:3])}" if fitting else f"name the family, with arguments={proven}"
    return f"{where} was made with {key}={value}, as its table {table} proves, and {stated}: {advice}".replace(
        " ]", "]"
    )


def _check_tables(converted: Converted, module: nn.Module, request: LoadRequest, file: WeightFile) -> None:
    """Compare stored tables with those that the model makes; another image size or window that was named has others.

    Raises:
        CheckpointError: One differs: the model is another than the one that wrote the file.
    """
    if not converted.tables or {"image_size", "window", "pretrained_windows"} & request.named.keys():
        return
    built = swin.computed_tables(module)
    for name, table in converted.tables.items():
        ours = built.get(name)
        same = ours is not None and ours.size == table.size
        if ours is None or not same or not np.allclose(ours.reshape(-1), table.reshape(-1), atol=1e-4):
            raise CheckpointError(
                f"the table {name} in {str(file.path)!r} differs from the one that this architecture computes: name "
                "the variant that wrote it"
            )


# Where a stage is one window high and wider than that, these shift along its width; the authors' Swin and ours do not.
_SHIFT_BY_SIDE = ("timm", "torchvision")


def _check_oblong(module: nn.Module, library: str, file: WeightFile) -> None:
    """Refuse an oblong Swin whose windows the library that wrote it shifts otherwise than ours.

    Raises:
        CheckpointError: A stage is no larger than a window along one side alone.
    """
    narrow = swin.narrow_stage(module)
    if narrow is None:
        return
    timm = "the source 'timm:NAME' with weights='FILE' builds it, or " if library == "timm" else ""
    raise CheckpointError(
        f"image_size makes a stage of {narrow[0]}×{narrow[1]} tokens in {str(file.path)!r}, one window along one side "
        f"only, whose windows {library} shifts otherwise: {timm}torch.onnx.export writes the model as it is, which "
        f"{adoption('MODEL.onnx')} adopts"
    )


def _fitted(
    tensors: Tensors, module: nn.Module, converted: Converted, request: LoadRequest, notes: list[str]
) -> Tensors:
    """Resize position and bias tables to the model's size, and draw a new head where that was asked for."""
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for name, tokens in converted.position_tokens.items():
        if name in tensors and name in expected and tensors[name].shape[1] != expected[name][1]:
            grid = _grid(expected[name][1] - tokens, module)
            before = tensors[name].shape[1] - tokens
            tensors[name] = resize_positions(tensors[name], grid, tokens, converted.resize_rule, name)
            notes.append(f"resized {name} from {math.isqrt(before)}×{math.isqrt(before)} to {grid[0]}×{grid[1]}")
    for name in tensors:
        if name.endswith("relative_position_bias_table") and name in expected:
            side = (math.isqrt(expected[name][0]) + 1) // 2
            if tensors[name].shape[0] != expected[name][0]:
                tensors[name] = swin.resize_table(tensors[name], side, converted.table_rule)
                notes.append(f"resized {name} to a window of {side}")
    stored_classes, classes = converted.arguments.get("num_classes"), expected.get("head.weight", (0,))[0]
    if not classes:
        return {name: value for name, value in tensors.items() if not name.startswith(_HEADS)}
    if request.reset_head or (request.head_for is not None and stored_classes != classes):
        tensors = {name: value for name, value in tensors.items() if not name.startswith(_HEADS)}
        heads = [name for name in expected if name.startswith(_HEADS)]
        heads += [
            name
            for name in tensors.keys() & expected.keys()
            if stored_classes is not None
            and is_of_classes(tuple(tensors[name].shape), expected[name], (stored_classes, classes))
        ]
        fresh = module.state_dict()
        tensors.update({name: fresh[name].numpy() for name in heads})
        if request.head_for is None:
            notes.append("drew a new head: it must be trained before it says anything")
        else:
            notes.append(f"the head is new, for {classes} classes: {', '.join(heads)}")
    return tensors


_HEADS = ("head.", "head_dist.")


def _grid(cells: int, module: nn.Module) -> tuple[int, int]:
    """Return rows and columns of a position table with ``cells`` entries, in the image's aspect ratio."""
    height, width = getattr(module, "image_size", (1, 1))
    rows = round(math.sqrt(cells * height / width))
    if rows == 0 or cells % rows:
        raise CheckpointError(f"{cells} positions do not make a grid in the aspect ratio {height}:{width}")
    return rows, cells // rows


def _assign(module: nn.Module, tensors: Tensors, where: str, hint: Callable[[], str]) -> None:
    import torch

    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    check_match(found, expected, where, hint() if found != expected else "")
    check_numbers(tensors, {name for name, value in module.state_dict().items() if value.is_floating_point()}, where)
    state = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()}
    trainable = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    module.load_state_dict(state, assign=True)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trainable[name])


def _hint(dialect: Dialect, tensors: Tensors, module: nn.Module, variant: Variant | None) -> str:
    """Return what else takes weights that do not fit: where only the depth is another, or the size of a variant, "".

    Tensors of a kind that the model lacks, or kinds of which the file has none, are parts that its library has.
    """
    expected = module.state_dict()
    kinds, known = ({re.sub(r"\d+", "#", name) for name in names} for names in (tensors, expected))
    if kinds == known and (variant is not None or tensors.keys() != expected.keys()):
        return ""
    if dialect.name.startswith("timm"):
        return OTHER_BUILDER
    return ONNX_ROUTE if dialect.name == "Hugging Face" else ""

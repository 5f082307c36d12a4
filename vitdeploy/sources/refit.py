"""A loaded model at another image size or with a head for other classes: every other weight stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vitdeploy.checkpoints.matching import is_of_classes
from vitdeploy.errors import CheckpointError, UsageError
from vitdeploy.preprocess import image_size
from vitdeploy.records import ModelSpec
from vitdeploy.sources.loaded import IMAGENET_CLASSES, LoadedModel, digest_of

if TYPE_CHECKING:
    from torch import Tensor, nn

Shape = tuple[int, ...]


def refit(
    loaded: LoadedModel, arguments: Mapping[str, Any], *, classes: int | None = None, seed: int = 0
) -> LoadedModel:
    """Return a model with other constructor arguments, and with ``classes`` a head for as many.

    Position and bias tables are resized by the family's rule (timm's models by timm's own), the preprocessing keeps its
    margin around the crop, and a head for another number of classes is drawn from ``seed``; notes say all of it.

    Raises:
        CheckpointError: An argument changes other weights than these.
        ModelError: The family does not take the arguments.
        UsageError: ``image_size`` is not a size, or ``channels`` is another number than the model's.
    """
    import torch

    from vitdeploy.models.external import translated
    from vitdeploy.models.registry import model_from_spec

    spec, preprocess = loaded.spec, loaded.preprocess
    size = image_size(arguments)
    if arguments.get("channels", preprocess.channels) != preprocess.channels:
        raise UsageError(
            f"channels is {arguments['channels']!r}, and the weights take images of {preprocess.channels}: leave it out"
        )
    changes = translated(
        spec.family, {name: value for name, value in arguments.items() if name != "channels"}, spec.name
    )
    stored = int(spec.arguments.get("num_classes", IMAGENET_CLASSES))
    wanted = stored if classes is None else classes
    changed = {**spec.arguments, **changes, **({} if classes is None else {"num_classes": wanted})}
    if size is not None:
        preprocess = preprocess.at_size(size)
    if changed == spec.arguments:
        return replace(loaded, preprocess=preprocess)
    kept = spec if wanted == stored else ModelSpec(family=spec.family, name=spec.name)
    spec = kept.model_copy(update={"arguments": changed})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if spec.family == "timm":
            module, notes = _through_timm(spec, loaded.module, (stored, wanted))
        else:
            module = model_from_spec(spec)
            spec, module = _with_trained_windows(spec, loaded.module, module)
            notes = transfer(loaded.module, module, spec.family, (stored, wanted))
    return LoadedModel(module.eval(), spec, preprocess, digest_of(module), loaded.origin, (*loaded.notes, *notes))


def transfer(trained: nn.Module, module: nn.Module, family: str, classes: tuple[int, int]) -> list[str]:
    """Fill ``module`` from ``trained`` and return notes on what was resized and what stays fresh.

    classes: How many the trained model knows and how many ``module`` has.

    Raises:
        CheckpointError: Names differ, or a shape does for another reason than image size, window or classes.
    """
    import torch

    source, target = trained.state_dict(), module.state_dict()
    fresh, notes = _refuse_other_names(source, target, classes), []
    with torch.no_grad():
        for name, value in source.items():
            if value.shape == target[name].shape:
                target[name].copy_(value)
            elif is_of_classes(tuple(value.shape), tuple(target[name].shape), classes):
                fresh.append(name)
            else:
                resized, note = _resized(name, value, (trained, module), family)
                target[name].copy_(resized)
                notes.append(note)
    return notes + _head_note(fresh, classes[1])


def _resized(name: str, value: Tensor, modules: tuple[nn.Module, nn.Module], family: str) -> tuple[Tensor, str]:
    """Return a table at the size that the second module has, and what was done.

    Raises:
        CheckpointError: It is no table of positions.
    """
    import torch

    from vitdeploy.checkpoints.layouts.swin import resize_table
    from vitdeploy.checkpoints.positions import FAMILY_RULES, resize_positions

    trained, module = modules
    target = module.state_dict()[name]
    grids, trained_on = _position_grids(module), _position_grids(trained)
    if name in grids and value.shape[2:] == target.shape[2:]:
        (tokens, before), (_, after) = trained_on[name], grids[name]
        rule = FAMILY_RULES.get(family, "bicubic")
        table = resize_positions(value.numpy(), after, tokens, rule, name, before)
        return torch.from_numpy(table), f"resized {name} from {_grid(before)} to {_grid(after)} ({rule})"
    if name.endswith("relative_position_bias_table") and value.shape[1:] == target.shape[1:]:
        side = (round(len(target) ** 0.5) + 1) // 2
        return torch.from_numpy(resize_table(value.numpy(), side)), f"resized {name} to a window of {side}"
    raise CheckpointError(
        f"{name!r} is {list(value.shape)} in the weights and {list(target.shape)} with these arguments: leave out "
        "those that change the weights"
    )


def _position_grids(module: nn.Module) -> Mapping[str, Any]:
    """Return name of a table of positions → tokens before it, and its grid; torchvision's ViT states none itself."""
    if type(module).__module__ == "torchvision.models.vision_transformer":
        side = int(getattr(module, "image_size")) // int(getattr(module, "patch_size"))  # noqa: B009
        return {"encoder.pos_embedding": (1, (side, side))}
    return getattr(module, "position_grids", {})


def _through_timm(spec: ModelSpec, trained: nn.Module, classes: tuple[int, int]) -> tuple[nn.Module, list[str]]:
    """Return a timm model with the weights of another one, and notes; timm itself fits tables and leaves out the head.

    Raises:
        CheckpointError: Other weights than these differ.
    """
    import torch

    from vitdeploy.models.external import create_timm

    source = {name: value.clone() for name, value in trained.state_dict().items()}
    module = create_timm(spec.name, spec.arguments, (source, classes[0]))
    source, target = trained.state_dict(), module.state_dict()
    fresh, resized = _refuse_other_names(source, target, classes), []
    for name, value in source.items():
        if torch.equal(value, target[name]):
            continue
        if is_of_classes(tuple(value.shape), tuple(target[name].shape), classes):
            fresh.append(name)
        elif value.shape != target[name].shape:
            resized.append(f"{name} from {_text(value.shape)} to {_text(target[name].shape)}")
        else:
            raise CheckpointError(f"timm did not take {name!r} over: leave out the arguments that change the weights")
    notes = [f"timm resized {', '.join(resized)}"] if resized else []
    return module, notes + _head_note(fresh, classes[1])


def _with_trained_windows(spec: ModelSpec, trained: nn.Module, module: nn.Module) -> tuple[ModelSpec, nn.Module]:
    """Return Swin v2 at other windows with the position biases of the windows that it was trained with.

    They are functions of the offset in units of the window of training (arXiv:2111.09883, section 3.3).
    """
    from vitdeploy.models.registry import model_from_spec

    if spec.family != "swin_v2" or spec.arguments.get("pretrained_windows") is not None:
        return spec, module
    before, after = (_windows(each) for each in (trained, module))
    if before == after or len(before) != len(after):
        return spec, module
    arguments = {**spec.arguments, "pretrained_windows": before}
    spec = spec.model_copy(update={"arguments": arguments})
    return spec, model_from_spec(spec)


def _windows(module: Any) -> list[int]:
    return [stage.blocks[0].attn.windows.side for stage in module.layers]


def _refuse_other_names(source: Mapping[str, Any], target: Mapping[str, Any], classes: tuple[int, int]) -> list[str]:
    """Return the weights of a head where the trained model has none; no other name may be in one of the two only."""
    head = [name for name in target if name not in source and not classes[0] and len(target[name]) == classes[1]]
    if source.keys() | set(head) != target.keys():
        odd = sorted(target.keys() ^ source.keys() ^ set(head))[0]
        raise CheckpointError(
            f"the arguments change the model's weights ({odd!r} is in one of the two): leave them out"
        )
    return head


def _head_note(fresh: list[str], classes: int) -> list[str]:
    return [f"the head is new, for {classes} classes: {', '.join(fresh)}"] if fresh else []


def _grid(grid: tuple[int, int]) -> str:
    return f"{grid[0]}×{grid[1]}"


def _text(shape: Shape) -> str:
    return "×".join(map(str, shape))

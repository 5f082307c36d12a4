"""Swin Transformer (Liu et al. 2021, arXiv:2103.14030), with the parameter names of its authors' checkpoints.

Attention stays inside square windows; every second block shifts them by half a side, cyclically, so that windows learn
of each other. All other layers treat tokens one by one. So tokens travel in *window order* here, the tokens of a window
side by side, and one gather with a constant index between two blocks stands for partition, shift and their reverses.
Patch merging needs 2×2 groups side by side, which is one more such order.

B batch, C channels, H W grid of tokens, w window side, n windows, N = w² tokens of a window, L = nN tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.errors import ModelError
from vitdeploy.models.arguments import (
    check_classes,
    check_heads,
    check_input,
    check_one_of,
    check_positive,
    check_rate,
    pair,
    patch_grid,
)
from vitdeploy.models.derived import DerivedConstants
from vitdeploy.models.layers import DropPath, Mlp, attend, drop_path_rates, make_head
from vitdeploy.models.vit import Initialisation, initialise_linear

MASKED = -100.0
"""What is added to the score of two tokens that only the cyclic shift made neighbours; its softmax is 0 in FP16 too."""


@dataclass(frozen=True)
class Windows:
    """How windows lie on the grid of a stage: ``side``² tokens each, the grid rolled up and left by ``shift`` first."""

    height: int
    width: int
    side: int
    shift: int

    @property
    def count(self) -> int:
        """How many windows there are."""
        return self.height * self.width // self.side**2

    def order(self) -> Tensor:
        """Return which token (row by row) stands at each place in window order, [L]."""
        grid = torch.arange(self.height * self.width, device="cpu").view(self.height, self.width)
        return self._cut(grid.roll((-self.shift, -self.shift), (0, 1))).flatten()

    def mask(self) -> Tensor | None:
        """Return what to add to the scores, [n, 1, N, N]: −100 for tokens that were not neighbours before the shift.

        None where windows are not shifted.
        """
        if self.shift == 0:
            return None
        rows, columns = (self._sections(side) for side in (self.height, self.width))
        section = self._cut(rows[:, None] * 3 + columns[None, :])
        return (section[:, None, :, None] != section[:, None, None, :]) * MASKED

    def relative_positions(self) -> Tensor:
        """Return the row of the bias table for each pair of tokens of a window, [N²].

        The row is (Δy + w − 1)(2w − 1) + Δx + w − 1.
        """
        at = torch.arange(self.side**2, device="cpu")
        y, x = at // self.side, at % self.side
        dy, dx = y[:, None] - y[None, :], x[:, None] - x[None, :]
        return ((dy + self.side - 1) * (2 * self.side - 1) + dx + self.side - 1).flatten()

    def _sections(self, length: int) -> Tensor:
        # After the roll the last `shift` places hold what was first, and the window there also the end of the rest.
        at = torch.arange(length, device="cpu")
        return (at >= length - self.side).long() + (at >= length - self.shift).long()

    def _cut(self, grid: Tensor) -> Tensor:
        side = self.side
        blocks = grid.view(self.height // side, side, self.width // side, side)
        return blocks.transpose(1, 2).reshape(self.count, side**2)


def fit_windows(grid: tuple[int, int], side: int, *, shifted: bool) -> Windows:
    """Lay windows on a grid of tokens; where it is no larger than one, the window shrinks to it and does not shift.

    Raises:
        ModelError: Windows do not fill the grid.
    """
    height, width = grid
    if min(height, width) <= side:
        side, shifted = min(height, width), False
    if height % side or width % side:
        raise ModelError(
            f"windows of {side}×{side} do not fill a stage of {height}×{width} tokens: "
            f"take another window, or an image_size whose stages divide by it"
        )
    return Windows(height, width, side, side // 2 if shifted else 0)


def merge_order(grid: tuple[int, int], after: Tensor) -> Tensor:
    """Return the order, [L], that brings the four tokens of a 2×2 group together, groups in the order ``after``.

    ``after`` is the next stage's order, [L/4]. Inside a group: upper left, lower left, upper right, lower right.
    """
    height, width = grid
    cells = torch.arange(height * width, device="cpu").view(height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 3, 1).reshape(-1, 4)[after].flatten()


def raster_order(grid: tuple[int, int]) -> Tensor:
    """Return the order in which a convolution gives its tokens, row by row, [L]."""
    return torch.arange(grid[0] * grid[1], device="cpu")


class Reorder(nn.Module):
    """Bring tokens from one order to another: a gather with a constant index, or nothing where they are the same."""

    def __init__(self, before: Tensor, after: Tensor) -> None:
        super().__init__()
        index = before.argsort()[after]
        unchanged = bool((index == torch.arange(len(index), device="cpu")).all())
        self.index: Tensor | None
        self.register_buffer("index", None if unchanged else index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, L, D] to [B, L, D]."""
        return x if self.index is None else x.index_select(1, self.index.to(x.device))


class WindowAttention(DerivedConstants):
    """Self-attention inside each window, with a learned bias for each head and relative position (section 3.2).

    Tokens come in window order. A shifted block adds its mask to the bias; windows then count as heads, so that scores
    stay [B, heads, N, N] with one added constant, the form that TensorRT fuses.
    """

    def __init__(self, width: int, heads: int, windows: Windows, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.windows = windows
        self.scale = (width // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * windows.side - 1) ** 2, heads))
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        self.relative_positions: Tensor
        self.mask: Tensor | None
        self.register_buffer("relative_positions", windows.relative_positions(), persistent=False)
        self.register_buffer("mask", windows.mask(), persistent=False)

    def derive(self) -> tuple[Tensor]:
        """Return bias plus mask: [H, N, N], or [n·H, N, N] where windows are shifted."""
        table = self.relative_position_bias_table
        bias = table[self.relative_positions.to(table.device)].view(self.windows.side**2, self.windows.side**2, -1)
        return (add_mask(bias.permute(2, 0, 1), self.mask),)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, L, D] to [B, L, D]."""
        (bias,) = self.derived()
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k_t, v = split_windows(q, k, v, heads=self.heads, windows=self.windows)
        x = attend(q, k_t, v, scale=self.scale, bias=bias)
        return self.proj(merge_windows(x, heads=self.heads, windows=self.windows))


def add_mask(bias: Tensor, mask: Tensor | None) -> Tensor:
    """Return the bias [H, N, N] as it is, or with mask [n, 1, N, N] as [n·H, N, N]."""
    return bias if mask is None else (bias + mask.to(bias)).flatten(0, 1)


def split_windows(q: Tensor, k: Tensor, v: Tensor, *, heads: int, windows: Windows) -> tuple[Tensor, Tensor, Tensor]:
    """Split [B, L, D] into q and v [B·n, H, N, d] and k transposed [B·n, H, d, N]; [B, n·H, …] for shifted windows."""
    tokens, width = windows.side**2, q.shape[-1] // heads
    if windows.shift == 0:
        q, k, v = (t.reshape(-1, tokens, heads, width) for t in (q, k, v))
        return q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1), v.permute(0, 2, 1, 3)
    n = windows.count
    q, k, v = (t.reshape(-1, n, tokens, heads, width) for t in (q, k, v))
    return (
        q.permute(0, 1, 3, 2, 4).reshape(-1, n * heads, tokens, width),
        k.permute(0, 1, 3, 4, 2).reshape(-1, n * heads, width, tokens),
        v.permute(0, 1, 3, 2, 4).reshape(-1, n * heads, tokens, width),
    )


def merge_windows(x: Tensor, *, heads: int, windows: Windows) -> Tensor:
    """Join what ``split_windows`` split to [B, L, D]."""
    tokens, width = x.shape[2:]
    if windows.shift == 0:
        parts = x.permute(0, 2, 1, 3)
    else:
        parts = x.reshape(-1, windows.count, heads, tokens, width).permute(0, 1, 3, 2, 4)
    return parts.reshape(-1, windows.count * tokens, heads * width)


class Block(nn.Module):
    """``x + attention(norm x)``, then ``x + mlp(norm x)``, tokens in the order of the block's windows."""

    def __init__(self, width: int, attention: nn.Module, *, mlp_ratio: float, eps: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = attention
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, L, D] to [B, L, D]."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Join the four tokens of each 2×2 group, normalise, and project 4D to 2D."""

    def __init__(self, width: int, reorder: Reorder, *, eps: float) -> None:
        super().__init__()
        self.reorder = reorder
        self.norm = nn.LayerNorm(4 * width, eps=eps)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, L, D] to [B, L/4, 2D]."""
        return self.reduction(self.norm(join_groups(self.reorder(x))))


def join_groups(x: Tensor) -> Tensor:
    """Put each four tokens that follow one another side by side: [B, L, D] to [B, L/4, 4D]."""
    return x.reshape(-1, x.shape[1] // 4, 4 * x.shape[2])


@dataclass(frozen=True)
class StagePlan:
    """What a stage is made of: its width and heads, and windows and stochastic depth of each block."""

    index: int
    width: int
    heads: int
    windows: tuple[Windows, ...]
    rates: tuple[float, ...]
    exit_order: Tensor | None
    """The order in which patch merging takes the tokens; None in the last stage."""


def plan_stages(
    grid: tuple[int, int],
    width: int,
    depths: Sequence[int],
    heads: Sequence[int],
    *,
    window: int,
    drop_path: float,
) -> list[StagePlan]:
    """Plan stages that halve the grid and double the width; every second block of each is shifted.

    Raises:
        ModelError: A grid cannot be halved or windows do not fill it, or the heads do not divide a width.
    """
    check_positive(width=width, window=window)
    check_rate("drop_path", drop_path)
    if not depths or len(depths) != len(heads):
        raise ModelError(f"depths {list(depths)!r} and heads {list(heads)!r} need one entry per stage each")
    rates = iter(drop_path_rates(drop_path, sum(depths)))
    grids, windows = [], []
    for index, depth in enumerate(depths):
        check_positive(depth=depth, heads=heads[index])
        check_heads(width << index, heads[index], None)
        grids.append((grid[0] >> index, grid[1] >> index))
        if index > 0 and (grids[-2][0] % 2 or grids[-2][1] % 2):
            raise ModelError(
                f"stage {index} has {grids[-2][0]}×{grids[-2][1]} tokens, which do not pair up for stage {index + 1}: "
                f"take fewer stages or another image_size"
            )
        windows.append(tuple(fit_windows(grids[-1], window, shifted=block % 2 == 1) for block in range(depth)))
    entries = [stage[0].order() for stage in windows]
    exits = [merge_order(grid, after) for grid, after in zip(grids, entries[1:], strict=False)]
    return [
        StagePlan(index, width << index, heads[index], stage, tuple(next(rates) for _ in stage), exit_order)
        for index, (stage, exit_order) in enumerate(zip(windows, [*exits, None], strict=True))
    ]


class Stage(nn.Module):
    """Blocks on one grid, then patch merging except in the last stage."""

    def __init__(self, plan: StagePlan, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        orders = [windows.order() for windows in plan.windows]
        self.reorders = nn.ModuleList(Reorder(*pair) for pair in zip([orders[0], *orders], orders, strict=False))
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, L, D], in the order of the first block, to [B, L, D], or [B, L/4, 2D] in that of the next stage."""
        for reorder, block in zip(self.reorders, self.blocks, strict=True):
            x = block(reorder(x))
        return x if self.downsample is None else self.downsample(x)


class Stem(nn.Module):
    """Project each patch and normalise it."""

    def __init__(self, channels: int, width: int, patch: int, *, eps: float) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, L, D], row by row."""
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


class WindowTransformer(nn.Module):
    """What both versions share: a stem, stages whose tokens are in window order, last norm, mean over tokens, head."""

    image_size: tuple[int, int]
    patch_embed: nn.Module
    norm: nn.Module
    head: nn.Module

    def assemble(
        self,
        grid: tuple[int, int],
        plans: Sequence[StagePlan],
        block: Callable[[StagePlan, Windows, float], nn.Module],
        merging: Callable[[StagePlan, Reorder], nn.Module],
        *,
        absolute_position: bool,
    ) -> None:
        """Build the stages from the version's own blocks and patch merging."""

        def stage(plan: StagePlan) -> Stage:
            blocks = [block(plan, windows, rate) for windows, rate in zip(plan.windows, plan.rates, strict=True)]
            if plan.exit_order is None:
                return Stage(plan, blocks, None)
            return Stage(plan, blocks, merging(plan, Reorder(plan.windows[-1].order(), plan.exit_order)))

        position = torch.zeros(1, grid[0] * grid[1], plans[0].width)
        self.absolute_pos_embed = nn.Parameter(position) if absolute_position else None
        self.position_grids = {"absolute_pos_embed": (0, grid)} if absolute_position else {}
        self.arrange = Reorder(raster_order(grid), plans[0].windows[0].order())
        self.layers = nn.ModuleList(stage(plan) for plan in plans)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, C, H, W] to logits [B, num_classes].

        Raises:
            ModelError: The images are not of the size that the model was built for.
        """
        check_input(x, self.image_size)
        x = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            x = x + self.absolute_pos_embed
        x = self.arrange(x)
        for stage in self.layers:
            x = stage(x)
        return self.head(self.norm(x).mean(dim=1))  # a mean asks for no order

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return regular expressions that sort parameters into layers: per stage if ``coarse``, else per block.

        A merging of patches belongs to the block behind it, as in timm.
        """
        mergings = [(rf"^layers\.{stage}\.downsample", (stage + 1, 0)) for stage in range(len(self.layers))]
        fine = [*mergings, (r"^layers\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^absolute_pos_embed|^patch_embed", "blocks": r"^layers\.(\d+)" if coarse else fine}


class SwinTransformer(WindowTransformer):
    """Swin Transformer.

    Args:
        image_size: Pixels, one number or [height, width]; each stage's tokens must divide by the window.
        width: Of the first stage; each further one has twice as much, on half the grid.
        depths, heads: One entry per stage.
        window: Side of a window in tokens; a stage that is no larger has one window.
        absolute_position: Add a learned position to each patch, which none of the published models does.
        eps: Of every LayerNorm.
        drop_path: Stochastic depth of the last block; it grows linearly from 0.
        init: ``"trunc_normal"`` (std 0.02), or ``"xavier"`` for tiny models, which at std 0.02 underfit.

    Raises:
        ModelError: The values do not fit each other; the message names both.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 224,
        patch: int = 4,
        channels: int = 3,
        num_classes: int = 1000,
        width: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        absolute_position: bool = False,
        eps: float = 1e-5,
        drop_path: float = 0.0,
        init: Initialisation = "trunc_normal",
    ) -> None:
        super().__init__()
        check_classes(num_classes)
        check_positive(channels=channels, mlp_ratio=mlp_ratio, eps=eps)
        check_one_of("init", init, ("trunc_normal", "xavier"))
        self.image_size = pair(image_size)
        grid = patch_grid(self.image_size, patch)
        plans = plan_stages(grid, width, depths, heads, window=window, drop_path=drop_path)

        def block(plan: StagePlan, windows: Windows, rate: float) -> nn.Module:
            attention = WindowAttention(plan.width, plan.heads, windows, qkv_bias=qkv_bias)
            return Block(plan.width, attention, mlp_ratio=mlp_ratio, eps=eps, drop_path=rate)

        def merging(plan: StagePlan, reorder: Reorder) -> nn.Module:
            return PatchMerging(plan.width, reorder, eps=eps)

        self.patch_embed = Stem(channels, width, patch, eps=eps)
        self.assemble(grid, plans, block, merging, absolute_position=absolute_position)
        self.norm = nn.LayerNorm(plans[-1].width, eps=eps)
        self.head = make_head(plans[-1].width, num_classes)
        self.initialise(init)

    def initialise(self, init: Initialisation) -> None:
        """Draw fresh weights: linears by ``init``, biases 0, bias tables and positions with std 0.02."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialise_linear(module, init)
            elif isinstance(module, WindowAttention):
                nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
        if self.absolute_pos_embed is not None:
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters, besides biases and norms, that are not decayed."""
        kept = ("relative_position_bias_table", "absolute_pos_embed")
        return {name for name, _ in self.named_parameters() if name.endswith(kept)}

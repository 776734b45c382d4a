"""The host side of the Triton kernels: layouts, tiles and grids. Imported only where they run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor

from diffsolve.kernels import device
from diffsolve.kernels.layout import accumulator, same_layout, seeds_on
from diffsolve.noise import Draw, Stream

if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
    raise ImportError(f"triton must be 3.3 or later, which has tuples of pointers, got {triton.__version__}")

__all__ = ["combine", "moments", "tiles", "update_requests", "window_update"]

BLOCK = 1024
"""Elements of a program: 8 for each of its 128 threads, which is 128 bits of half precision."""
WARPS = 4


def tiles(batch: int, size: int, operands: int, acc: torch.dtype) -> tuple[int, int, int]:
    """(R, C, blocks): samples and elements of a tile, and the tiles that a sample takes.

    A tile has fewer elements where many operands, or float64, would not fit the registers.
    """
    block = BLOCK if operands <= 9 and acc == torch.float32 else BLOCK // 2
    C = min(max(triton.next_power_of_2(size), 16), block)
    R = min(block // C, triton.next_power_of_2(max(batch, 1)))
    return R, C, -(-size // C)


def combine(
    inputs: Sequence[Tensor],
    weights: Tensor,
    outputs: Sequence[Tensor],
    *,
    masks: Sequence[int] | None = None,
    draw: Draw | None = None,
    guided: int = -1,
    uncond: Tensor | None = None,
    guidance: float = 1.0,
    factor: Tensor | None = None,
) -> None:
    """outputs[m] = sum over k of weights[m, k] inputs[k], in one launch; see `device.combine_kernel`.

    Args:
        weights: float64 on the device, (M, K) or (B, M, K); K counts the noise of `draw` as its last column.
        outputs: dense tensors of one layout, which they may share with inputs.
        masks: per output, the bits of the weights that are not zero; all by default.
        factor: (B,), on the guided column.
    """
    like = outputs[0]
    if like.numel() == 0:
        return
    rows = weights.dim() == 3 or draw is not None or factor is not None
    if not rows:
        batch, size = 1, like.numel()
    else:
        batch, size = len(like), like.numel() // len(like)
    given = same_layout(like, inputs)
    acc = accumulator(*inputs, *outputs)
    R, C, blocks = tiles(batch, size, len(inputs) + len(outputs), acc)
    M, K = weights.shape[-2:]
    keys, first, row, stream, listed = (None, 0, 0, 0, False) if draw is None else seeds_on(draw, like.device)
    with _on(like.device):
        device.combine_kernel[(-(-batch // R) * blocks,)](
            tuple(given), tuple(outputs), weights.contiguous(),
            None if uncond is None else same_layout(like, [uncond])[0], float(guidance), factor,
            keys, first, row, stream, batch, size, blocks,
            MASKS=tuple(masks) if masks is not None else ((1 << K) - 1,) * M,
            GUIDED=guided, NOISE=int(draw is not None), LISTED=listed,
            PER_SAMPLE=weights.dim() == 3, FLAT=not rows, RAGGED=not rows and size % 16 != 0, ACC=_ACC[acc], R=R, C=C,
            num_warps=WARPS,
        )  # fmt: skip


def window_update(
    weights: Tensor,
    keep: Tensor,
    s: Tensor | None,
    y: Tensor,
    d: Tensor,
    f: Tensor,
    z: Tensor | None,
    old: Tensor | None,
    masks: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """See `diffsolve.kernels.window_update`; masks are the bits of the columns of W that are not zero."""
    (batch, size), steps, K = y.shape, len(f), len(d) + 1
    ys = torch.cat([y[None], y.new_empty(steps, batch, size)])
    ss = None if s is None else torch.cat([s[None], s.new_empty(steps, batch, size)])
    ds = torch.cat([d, d.new_empty(steps, batch, size)])
    acc = accumulator(y, f, *(t for t in (old, z) if t is not None))
    if z is None:
        masks = (masks[0] & ~(1 << (K + 2)), masks[1] & ~(1 << (K + 2)))
    if s is None:
        masks = (0, masks[1])
    C = min(max(triton.next_power_of_2(size), 16), BLOCK if acc == torch.float32 else BLOCK // 2)
    blocks = -(-size // C)
    partial = None if old is None else torch.zeros(max(blocks, 1), steps, batch, dtype=acc, device=y.device)
    if ys.numel():
        with _on(y.device):
            device.window_kernel[(batch * blocks,)](
                weights.contiguous(), keep.contiguous(), f.contiguous(), None if z is None else z.contiguous(),
                None if old is None else old.contiguous(), ss, ys, ds, partial, batch, steps, size, blocks,
                K=K, MASKS=masks, ACC=_ACC[acc], C=C, num_warps=WARPS,
            )  # fmt: skip
    return ys if ss is None else ss, ys, ds, None if partial is None else partial.sum(0)


def update_requests(memory: Tensor, outputs: Tensor | None, table: Tensor, factor: Tensor | None) -> None:
    """The turns of a table (n, words); see `diffsolve.kernels.requests.table_of`. Rows that draw or are guided may be
    any: what is not there costs no memory traffic."""
    size = memory[0].numel()
    columns = (table.shape[1] - 7) // 4
    acc = accumulator(memory, *([] if outputs is None else [outputs]))
    C = min(max(triton.next_power_of_2(size), 16), BLOCK if columns <= 8 and acc == torch.float32 else BLOCK // 2)
    blocks = -(-size // C)
    with _on(memory.device):
        device.requests_kernel[(len(table) * blocks,)](
            memory, None if outputs is None else outputs.contiguous(), table, table.view(torch.float64), factor,
            int(Stream.ROW), size, blocks,
            COLUMNS=columns, GUIDED=outputs is not None, NOISE=True, ACC=_ACC[acc], C=C, num_warps=WARPS,
        )  # fmt: skip


def moments(cond: Tensor, uncond: Tensor, guidance: float) -> Tensor:
    """(2, 2, B): per sample the sums of x and of x^2, for cond and for uncond + guidance (cond - uncond)."""
    cond = cond.contiguous()
    uncond = same_layout(cond, [uncond])[0]
    batch, size = len(cond), math.prod(cond.shape[1:])
    acc = accumulator(cond, uncond)
    R, C, blocks = tiles(batch, size, 2, acc)
    partial = torch.zeros(max(blocks, 1), 2, 2, batch, dtype=acc, device=cond.device)
    if cond.numel():
        with _on(cond.device):
            device.moments_kernel[(-(-batch // R) * blocks,)](
                cond, uncond, float(guidance), partial, batch, size, blocks, ACC=_ACC[acc], R=R, C=C, num_warps=WARPS
            )
    return partial.sum(0)


_ACC = {torch.float32: triton.language.float32, torch.float64: triton.language.float64}


def _on(where: torch.device) -> AbstractContextManager[None]:
    """Triton launches on the current device."""
    return torch.cuda.device(where) if where.type == "cuda" else nullcontext()

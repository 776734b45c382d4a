"""Numbers per sample: probes against their images, norms, and the rescaling of guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from diffsolve.kernels.dispatch import fused
from diffsolve.noise import Draw

__all__ = ["probe", "probe_dot", "sample_norms", "spread"]


def probe_dot(jv: Tensor, draw: Draw, *, gaussian: bool = False) -> Tensor:
    """v . (J v) per sample, shape (B,), with the probe v regenerated from its counter, not stored.

    An unbiased estimate of the trace of J (Hutchinson, Comm. Statist. Simul. 1989).

    Args:
        jv: (B, ...): the Jacobian applied to `probe(draw, ...)`.
        draw: where the probe comes from.
        gaussian: standard normals, else Rademacher signs. A sign is that of the normal, which a device may round to
            the other side of 0 once in 10^7 elements.

    Returns:
        float32, or float64 if jv has it.
    """
    run = fused(jv.device, "probe_dot")
    if run is not None and draw.plain:
        found: Tensor = run(jv, draw, gaussian)
        return found
    acc = torch.float64 if jv.dtype == torch.float64 else torch.float32
    v = probe(draw, jv.to(acc), gaussian=gaussian)
    return (jv.to(acc) * v).flatten(1).sum(1)


def probe(draw: Draw, like: Tensor, *, gaussian: bool = False) -> Tensor:
    """The probe itself, of the shape, dtype and device of `like`: standard normals, or their signs (+1 for 0)."""
    v = draw.tensor(like)
    return v if gaussian else torch.where(v < 0, -1.0, 1.0).to(v)


def sample_norms(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The Euclidean norm of every sample of every tensor, each (B,), in one pass over all of them.

    What the step size of a Langevin corrector is made of: eps = 2 alpha (r |z| / |score|)^2 (Song et al., 2011.13456,
    algorithm 4), there from means over the batch, here for each sample.
    """
    run = fused(tensors[0].device, "moments")
    if run is not None:
        return tuple(run(tensors)[:, 1].sqrt())
    wide = any(t.dtype == torch.float64 for t in tensors)
    return tuple(torch.linalg.vector_norm(t.flatten(1), dim=1, dtype=_acc(wide)) for t in tensors)


def spread(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """std(cond) / std(guided) per sample, shape (B,): for rescaled guidance (Lin et al., 2305.08891, eq. 15).

    The guided output is uncond + scale (cond - uncond).
    """
    run = fused(cond.device, "moments")
    if run is None:
        acc = _acc(torch.float64 in (cond.dtype, uncond.dtype))
        c, u = cond.to(acc).flatten(1), uncond.to(acc).flatten(1)
        return c.std(1) / torch.lerp(u, c, scale).std(1)
    first, second = run([cond, uncond], scale).unbind(1)
    count = max(cond[0].numel(), 1) if len(cond) else 1
    variance = second.double() - first.double().square() / count
    ratio: Tensor = (variance[0] / variance[1]).sqrt()
    return ratio


def _acc(wide: bool) -> torch.dtype:
    return torch.float64 if wide else torch.float32

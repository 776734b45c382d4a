r"""The divergence of a network: the trace of its Jacobian J, exactly or by random directions.

Every method gives m exchangeable estimates, (n, m) for n samples: their mean is the trace, or an unbiased estimate of
it, and their spread measures its error. The directions are drawn once and kept along the whole path, so that an
adaptive solver sees a smooth right-hand side.

The variance of one estimate v^T J v is 2 (|S|^2 - sum S_ii^2) with Rademacher directions and 2 |S|^2 with Gaussian
ones, where S is the symmetric part of J and |.| the Frobenius norm.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffsolve.common.checks import choice, integer, required
from diffsolve.common.registry import Registry
from diffsolve.likelihood.products import MODES, WAYS, push
from diffsolve.noise import Key, Stream

__all__ = ["Deflated", "Exact", "HutchPP", "Hutchinson", "Trace", "named", "register", "ways"]

Network = Callable[[Tensor], Tensor]


class Trace(ABC):
    """A method for the trace."""

    chunk: int
    """The most directions in one forward pass: memory grows with it."""
    mode: str
    """How products with the Jacobian are made: see `diffsolve.likelihood.products`."""

    @abstractmethod
    def directions(self, shape: torch.Size, key: Key, like: Tensor) -> Tensor | None:
        """(m, B, ..): the directions, drawn once for a whole path; None if there are none."""

    @abstractmethod
    def __call__(self, net: Network, x: Tensor, directions: Tensor | None) -> tuple[Tensor, Tensor]:
        """(net(x), (n, m) estimates of the trace in float64)."""

    @abstractmethod
    def count(self, dim: int) -> int:
        """Jacobian-vector products per network call, for samples of `dim` numbers."""

    @property
    @abstractmethod
    def estimates(self) -> int:
        """m, the number of estimates."""

    def stderr(self, values: Tensor, dim: int) -> Tensor:
        """The standard error of the mean of the estimates (n, m), for samples of `dim` numbers."""
        count = values.shape[1]
        return (
            values.std(1) / math.sqrt(count) if count > 1 and len(values) else torch.full_like(values[:, 0], math.nan)
        )


@dataclass(frozen=True)
class Exact(Trace):
    """sum_i e_i^T J e_i: as many Jacobian-vector products as a sample has numbers, `chunk` of them at a time.

    Args:
        chunk: the most directions in one forward pass.
        mode: of the products with J: see `diffsolve.likelihood.products`.
    """

    chunk: int = 64
    mode: str = "auto"

    def __post_init__(self) -> None:
        integer("chunk", self.chunk, 1)
        choice("mode", self.mode, MODES)

    def directions(self, shape: torch.Size, key: Key, like: Tensor) -> Tensor | None:
        return None

    def __call__(self, net: Network, x: Tensor, directions: Tensor | None) -> tuple[Tensor, Tensor]:
        dim = x[0].numel() if len(x) else 0
        out, trace = None, torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for first in range(0, max(dim, 1), self.chunk):
            size = min(self.chunk, dim - first)
            # The i-th column of J for all samples at once: a direction is the same for every one of them.
            basis = torch.zeros(size, dim, dtype=x.dtype, device=x.device)
            basis[torch.arange(size), torch.arange(first, first + size)] = 1
            basis = basis.view(size, 1, *x.shape[1:]).expand(size, *x.shape)
            out, pushed = push(net, x, basis, self.mode)
            columns = pushed.reshape(size, len(x), dim)[:, :, first : first + size]
            trace = trace + columns.diagonal(dim1=0, dim2=2).double().sum(1)
        assert out is not None
        return out, trace[:, None]

    def count(self, dim: int) -> int:
        return dim

    @property
    def estimates(self) -> int:
        return 1

    def stderr(self, values: Tensor, dim: int) -> Tensor:
        return torch.zeros_like(values[:, 0])


@dataclass(frozen=True)
class Hutchinson(Trace):
    """v^T J v for `probes` directions of independent numbers of mean 0 and variance 1.

    Args:
        probes: the number of directions; the standard error falls with its root, and is unknown for one.
        kind: "rademacher", +1 or -1; "gaussian"; or "sphere", Gaussian directions scaled to length sqrt(D), which keeps
            the estimate unbiased and removes the variance from the isotropic part of J.
        chunk: the most directions in one forward pass.
        mode: of the products with J: see `diffsolve.likelihood.products`.

    Sources: Hutchinson, Commun. Stat. Simul. 19 (1990); frozen along the path as in FFJORD, 1810.01367.
    """

    probes: int = 8
    kind: str = "rademacher"
    chunk: int = 64
    mode: str = "auto"

    def __post_init__(self) -> None:
        integer("probes", self.probes, 1)
        integer("chunk", self.chunk, 1)
        choice("mode", self.mode, MODES)
        choice("kind", self.kind, ("rademacher", "gaussian", "sphere"))

    def directions(self, shape: torch.Size, key: Key, like: Tensor) -> Tensor | None:
        return _draw(self.probes, self.kind, shape, key, like)

    def __call__(self, net: Network, x: Tensor, directions: Tensor | None) -> tuple[Tensor, Tensor]:
        assert directions is not None
        out, pushed = _chunked(net, x, directions, self.chunk, self.mode)
        return out, _dot(directions, pushed).T

    def count(self, dim: int) -> int:
        return self.probes

    @property
    def estimates(self) -> int:
        return self.probes


@dataclass(frozen=True)
class HutchPP(Trace):
    """Hutch++: the trace on the range of J S exactly, and Hutchinson's estimate on what is left.

    With S of k = probes / 3 directions, Q an orthonormal basis of J S, and w one of k more, Gaussian and then projected
    onto the complement of Q and scaled to length sqrt(D - k):

        tr(Q^T J Q) + w^T J w

    It pays where few eigenvalues make up most of J.

    Args:
        probes: Jacobian-vector products in all, a multiple of 3.
        chunk: the most directions in one forward pass.
        mode: of the products with J: see `diffsolve.likelihood.products`.

    Source: Meyer, Musco, Musco and Woodruff, 2010.09649, algorithm 1.
    """

    probes: int = 12
    chunk: int = 64
    mode: str = "auto"

    def __post_init__(self) -> None:
        integer("probes", self.probes, 1)
        integer("chunk", self.chunk, 1)
        choice("mode", self.mode, MODES)
        required(self.probes % 3 == 0, "probes", self.probes, "a multiple of 3")

    def directions(self, shape: torch.Size, key: Key, like: Tensor) -> Tensor | None:
        k, dim = self.probes // 3, shape[1:].numel()
        required(k < dim, "probes", self.probes, f"below {3 * dim} for {dim} numbers a sample")
        return _draw(2 * k, "gaussian", shape, key, like)

    def __call__(self, net: Network, x: Tensor, directions: Tensor | None) -> tuple[Tensor, Tensor]:
        assert directions is not None
        sketch, v = directions.chunk(2)
        out, pushed = _chunked(net, x, sketch, self.chunk, self.mode)
        # (n, D, k): the basis of each sample. It is not differentiated: any fixed one gives an unbiased estimate.
        basis = torch.linalg.qr(pushed.detach().flatten(2).permute(1, 2, 0).double()).Q
        q = basis.permute(2, 0, 1).to(x.dtype).reshape(sketch.shape)
        flat = v.flatten(2).permute(1, 2, 0).double()
        rest = flat - basis @ (basis.mT @ flat)
        rest = rest * (rest.shape[1] - rest.shape[2]) ** 0.5 / rest.norm(dim=1, keepdim=True)
        rest = rest.permute(2, 0, 1).to(x.dtype).reshape(v.shape)
        both = torch.cat([q, rest])
        _, moved = _chunked(net, x, both, self.chunk, self.mode)
        on_range, beyond = _dot(both, moved).chunk(2)
        return out, (on_range.sum(0) + beyond).T

    def count(self, dim: int) -> int:
        return self.probes

    @property
    def estimates(self) -> int:
        return self.probes // 3


@dataclass(frozen=True)
class Deflated(Trace):
    r"""Hutchinson's estimate with Rademacher directions, each corrected for the outliers of J that the others reveal.

        e_j = v_j^T (J - B_j) v_j + tr B_j

    is unbiased for any B_j that depends on the other directions V alone. Here it is a Nystrom approximation of J - c I,
    from J V, which is computed anyway: with (c + d_i, V u_i) the Ritz pairs of the symmetric part of J on the
    span of V, and c the median of their values,

        B_j = sum_i w_i g_i g_i^T,    g_i = (J - c I) V u_i,    w_i = d_i^5 / (d_i^6 + tau^6),

    where tau is 5 times the median of |d_i|: what does not stand out from the bulk is left alone. So the estimate is
    exact, to rounding, for a multiple of the identity plus a few eigenvectors, fewer than about a third of the probes;
    it is Hutchinson's estimate where nothing stands out, at the cost of `probes` eigenvalue problems of size
    `probes` - 1 per sample and call. B is not differentiated: gradients are those of Hutchinson's estimate.

    Args:
        probes: the number of directions, at most the numbers of a sample; among fewer than 4 nothing can stand out.
        chunk: the most directions in one forward pass.
        mode: of the products with J: see `diffsolve.likelihood.products`.

    Source: leaving one out, Epperly, Tropp and Webber, 2301.07825; the shift and the cut are this library's own.
    """

    probes: int = 16
    chunk: int = 64
    mode: str = "auto"

    def __post_init__(self) -> None:
        integer("probes", self.probes, 1)
        integer("chunk", self.chunk, 1)
        choice("mode", self.mode, MODES)

    def directions(self, shape: torch.Size, key: Key, like: Tensor) -> Tensor | None:
        dim = shape[1:].numel()
        required(self.probes <= dim, "probes", self.probes, f"at most {dim} for {dim} numbers a sample")
        return _draw(self.probes, "rademacher", shape, key, like)

    def __call__(self, net: Network, x: Tensor, directions: Tensor | None) -> tuple[Tensor, Tensor]:
        assert directions is not None
        out, pushed = _chunked(net, x, directions, self.chunk, self.mode)
        estimates = _dot(directions, pushed).T
        if self.probes > 3:
            with torch.no_grad():
                v, jv = (part.reshape(*part.shape[:2], -1).permute(1, 2, 0).double() for part in (directions, pushed))
                estimates = estimates + _outliers(v.mT @ v, v.mT @ jv, jv.mT @ jv)
        return out, estimates

    def count(self, dim: int) -> int:
        return self.probes

    @property
    def estimates(self) -> int:
        return self.probes


registry: Registry[Trace] = Registry(
    "trace",
    Trace,
    {"deflated": Deflated, "exact": Exact, "hutch++": HutchPP, "hutchinson": Hutchinson},
    group="diffsolve.traces",
)
register = registry.register


def ways(trace: Trace) -> list[Trace]:
    """The traces to try in turn, until the network has the derivatives that one needs: of mode "auto" one of each mode.

    A trace of another class, without a mode, stands alone.
    """
    found: Any = trace
    auto = is_dataclass(found) and getattr(found, "mode", None) == "auto"
    if not auto:
        return [trace]
    return [replace(found, mode=mode) for mode in WAYS]


def named(trace: str | Trace) -> Trace:
    """ "exact", "hutchinson(probes=16)", "hutch++", or a `Trace`, which is returned as it is."""
    return registry.resolve(trace)


def _draw(count: int, kind: str, shape: torch.Size, key: Key, like: Tensor) -> Tensor:
    v = torch.empty(count, *shape, dtype=like.dtype, device=like.device)
    for row in range(count):
        key.normal(shape, row=row, stream=Stream.PROBE, out=v[row])
    if kind == "rademacher":
        return torch.where(v < 0, -1.0, 1.0).to(v)
    if kind == "sphere":
        v *= (shape[1:].numel() / _dot(v, v)).sqrt().to(v).view(*v.shape[:2], *[1] * (v.dim() - 2))
    return v


# Example: m = 4 directions. For j = 1 the others are 0, 2, 3, and everything is made of rows and columns 0, 2, 3 of the
# three (m, m) products: no further product with J is needed. `others` is [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]],
# and part[:, others[:, :, None], others[:, None]] has for each sample and j the (m - 1, m - 1) block of the others.
# With J = c I + d g g^T, |g| = 1: of each block one d_i is d |P g|^2, P g the part of g in the span of the others, and
# the rest are 0. Its g_i g_i^T is d^2 |P g|^2 g g^T, so that B_j = g_i g_i^T / d_i = d g g^T: v_j^T (J - B_j) v_j is
# c D, and tr B_j is the d that this leaves out.
def _outliers(gram: Tensor, h: Tensor, squares: Tensor) -> Tensor:
    """tr B_j - v_j^T B_j v_j of each direction j (n, m), from V^T V, V^T J V and (J V)^T J V; see `Deflated`."""
    m = h.shape[1]
    others = torch.tensor([[i for i in range(m) if i != j] for j in range(m)], device=h.device)
    rows, columns = others[:, :, None], others[:, None]
    gram_, h_, squares_ = (part[:, rows, columns] for part in (gram, h, squares))  # (n, m, m - 1, m - 1)
    # Linearly dependent directions, which samples of few numbers can have, must not make this fail.
    ridge = 1e-9 * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None, None]
    inverse = torch.linalg.inv(torch.linalg.cholesky(gram_ + ridge * torch.eye(m - 1).to(gram)))
    values, vectors = torch.linalg.eigh(inverse @ ((h_ + h_.mT) / 2) @ inverse.mT)
    u = inverse.mT @ vectors
    c = values.median(-1, keepdim=True).values
    # |g|^2 below loses what is under 1e-16 of |J v|^2, so that the smallest d are not to be divided by.
    size = (squares.diagonal(dim1=1, dim2=2).sum(1) / gram.diagonal(dim1=1, dim2=2).sum(1)).sqrt()[:, None, None]
    size = size.clamp(min=1e-30)
    d = (values - c) / size
    tau = 5 * d.abs().median(-1, keepdim=True).values + 1e-6
    weight = d**5 / (d**6 + tau**6) / size
    c = c[..., None]
    lengths = (u * ((squares_ - c * (h_ + h_.mT) + c * c * gram_) @ u)).sum(2)
    each = torch.arange(m, device=h.device)[:, None]
    across = ((h[:, each, others] - c[..., 0] * gram[:, each, others])[:, :, None] @ u)[:, :, 0]  # v_j^T g_i
    corrections: Tensor = (weight * (lengths - across.square())).sum(-1)
    return corrections


def _chunked(net: Network, x: Tensor, directions: Tensor, chunk: int, mode: str) -> tuple[Tensor, Tensor]:
    out, parts = None, []
    for piece in torch.split(directions, chunk):
        out, pushed = push(net, x, piece, mode)
        parts.append(pushed)
    assert out is not None
    return out, parts[0] if len(parts) == 1 else torch.cat(parts)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(m, n) inner products over each sample's numbers, summed in float64."""
    return (a * b).flatten(2).double().sum(2) if a.dim() > 2 else (a * b).double()

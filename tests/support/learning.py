"""What the tests of learned runs share: a target, a network, a student somewhere."""

import torch

import diffsolve as ds
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import ring
from diffsolve.tuning.family import Family, Provenance
from diffsolve.tuning.pilot import spread
from diffsolve.tuning.student import Student

RING = mixture_model(ring(), "condot")


class Net(torch.nn.Module):
    """Small, smooth, and of all its arguments."""

    def __init__(self, size=3, dtype=torch.float64):
        super().__init__()
        random = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        self.weight = torch.nn.Parameter((0.5 * random).to(dtype))

    def forward(self, x, t, shift=0.0):
        return torch.tanh(x @ self.weight + shift) * (1 + t.cos())[:, None].to(x)


def noise(n=4, size=3, seed=1):
    return torch.randn(n, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moved(model, nfe=5, history=5, solver="auto", scale=0.1, times=True, also=(), together=1, **options):
    """A student somewhere else than at its start."""
    start = ds.plan(model, solver, nfe=nfe, **options)
    if together > 1:
        start = spread(model, start, together)
    student = Student(model, start, history, times, "moved", also, together)
    generator = torch.Generator().manual_seed(0)
    for p in student.parameters.values():
        p.data += scale * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return student


def family_of(table):
    """A family of one table, of no known network."""
    about = Provenance(0, table.path, "velocity", 1.0, "100", 0, 8, {}, "0", "0")
    return Family({table.nfe: table}, about)

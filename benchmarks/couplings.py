r"""Couplings and paths on points in the plane: how straight the flows are, and what few calls of euler make of them.

    python benchmarks/couplings.py           # results/couplings.jsonl and docs/couplings.png
    python benchmarks/couplings.py --quick   # short trainings, nothing written

One small MLP for each row, trained by `ds.training.fit`: independent pairs, optimal transport within the batch (POT),
and the flow of the first one's pairs, twice (reflow); for independent pairs, beside "condot" (conical), the paths "vp"
and "edm" (variance exploding, whose clock is sigma). S is `ds.training.straightness` over E|x_1 - x_0|^2. The error of
k calls of euler is the mean distance from the flow's own ends (200 steps of heun), from the same noise, over the root
mean square norm of the data; "energy" is the root of the energy distance to 4000 fresh points, of those ends and of one
call of euler; `floor` is that of data, the root of the mean size over ten draws.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from record import Recorder, Table
from torch import Tensor, nn

import diffsolve as ds
from diffsolve.models import Model
from diffsolve.reference.mixture import ring

plt.style.use("diffsolve.common.look")
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "couplings.png"
CALLS = (1, 2, 4, 8)
KINDS = {"condot": "velocity", "vp": "v", "edm": "edm"}
STEPS, BATCH, PAIRS, SAMPLES = 1500, 256, 20_000, 2000


class Net(nn.Module):
    """Four layers, told the time by itself and waves of it."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        sizes = [2 + 7, width, width, width]
        layers: list[nn.Module] = []
        for a, b in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(a, b), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = math.pi * t[:, None].float() * torch.tensor([0.5, 1.0, 2.0])
        out: Tensor = self.layers(torch.cat([x, t[:, None].float(), angles.cos(), angles.sin()], 1))
        return out


def moons(n: int, seed: int) -> Tensor:
    """Two half circles, each around an end of the other, of about the size of the ring."""
    g = torch.Generator().manual_seed(seed)
    angle, which = math.pi * torch.rand(n, generator=g), torch.randint(2, (n,), generator=g)
    x = torch.stack([angle.cos() + which - 0.5, angle.sin() * (1 - 2 * which) - 0.25 + 0.5 * which], 1)
    return 2 * (x + 0.05 * torch.randn(n, 2, generator=g))


SETS: dict[str, Callable[[int, int], Tensor]] = {
    "ring": lambda n, seed: ring(radius=2.0, std=0.1).sample(n, seed=seed).float(),
    "moons": moons,
}


def fresh(path: str, like: Model | None = None) -> Model:
    torch.manual_seed(0)
    net = Net()
    if like is not None:
        net.load_state_dict(like.net.state_dict())  # type: ignore[attr-defined]
    return ds.adapt(net, path, KINDS[path], **({"sigma_data": 1.4} if path == "edm" else {}))


def trained(
    data: Any, folder: str, path: str = "condot", like: Model | None = None, steps: int = STEPS, **how: Any
) -> Model:
    model = fresh(path, like)
    ds.training.fit(
        model, data, Path(folder) / "w", steps=steps, batch=BATCH, lr=2e-3, ema=0.998, objective=how, progress=True
    )
    return model


def energy(x: Tensor, y: Tensor) -> float:
    """The energy distance, 2 E|x - y| - E|x - x'| - E|y - y'|, unbiased."""
    far = 2 * torch.cdist(x, y).mean()
    for own in (x, y):
        far -= torch.cdist(own, own).sum() / (len(own) * (len(own) - 1))
    return float(far)


def measured(model: Model, data: Tensor) -> list[float]:
    """S, the errors of few calls, and two energy distances."""
    with torch.no_grad():
        shape, size = (SAMPLES, 2), data.square().sum(1).mean().sqrt()
        fine = ds.solve(model, shape, solver="heun", steps=200, grid="uniform-t", seed=5, trajectory=True)
        assert fine.trajectory is not None
        moved = (fine.x - fine.trajectory[0]).square().sum(1).mean()
        bent = ds.training.straightness(model, shape, steps=200, seed=5) / float(moved)
        few = [ds.sample(model, shape, solver="euler", steps=k, grid="uniform-t", seed=5) for k in CALLS]
        errors = [float((x - fine.x).norm(dim=1).mean() / size) for x in few]
        return [bent, *errors, *(math.sqrt(max(energy(x, data), 0.0)) for x in (fine.x, few[0]))]


def models(name: str, folder: str, steps: int) -> dict[str, Model]:
    """The trained networks of a set."""
    data = SETS[name](PAIRS, 0)
    found = {"condot, independent": trained(data, folder, steps=steps)}
    found["condot, optimal"] = trained(data, folder, steps=steps, coupling="ot")
    before = found["condot, independent"]
    for k in (1, 2):
        pairs = ds.training.reflow(
            before, (PAIRS, 2), Path(folder) / f"{name}{k}", solver="heun", steps=50, seed=k, batch=10_000
        )
        before = found[f"condot, reflow {k}"] = trained(pairs, folder, like=before, steps=steps)
    for path in ("vp", "edm"):
        found[f"{path}, independent"] = trained(data, folder, path, steps=steps, times="uniform-lambda")
    return found


def drawn(row: Sequence[Any], found: dict[str, Model]) -> None:
    """Lines of the flows, from noise (grey) to data."""
    for axis, (title, model) in zip(row, found.items(), strict=False):
        run = ds.solve(model, (150, 2), solver="heun", steps=60, grid="uniform-t", seed=1, trajectory=True)
        assert run.trajectory is not None
        for line in run.trajectory.detach().unbind(1):
            axis.plot(*line.T, color="C0", lw=0.4, alpha=0.6)
        axis.plot(*run.trajectory[0].T, ".", color="0.6", ms=2)
        axis.plot(*run.x.T, ".", color="black", ms=2)
        one = ds.sample(model, (600, 2), solver="euler", steps=1, seed=1)
        axis.plot(*one.detach().T, ".", color="C1", ms=1.5, alpha=0.5)
        axis.set(title=title, xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), xticks=[], yticks=[], aspect="equal")


def report(table: Table, name: str, found: dict[str, Model]) -> None:
    data = SETS[name](4000, 1)
    for title, model in found.items():
        table.add([name, *title.split(", ")], measured(model, data))
    floor = math.sqrt(sum(abs(energy(SETS[name](SAMPLES, k), data)) for k in range(2, 12)) / 10)
    table.add([name, "data", "floor"], [None] * (1 + len(CALLS)) + [floor, None])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short trainings, nothing written")
    quick = parser.parse_args(argv).quick
    torch.set_num_threads(1)
    recorder = Recorder("couplings", None if quick else "")
    columns = {"S": ".3f", **{f"euler-{k}": ".3f" for k in CALLS}, "energy": ".3f", "energy of euler-1": ".3f"}
    table = recorder.table("2-D flows", ["set", "path", "coupling"], columns)
    figure, axes = plt.subplots(len(SETS), 4, figsize=(12, 6.4))
    for row, name in zip(axes, SETS, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            found = models(name, folder, 300 if quick else STEPS)
        report(table, name, found)
        drawn(row, found)
    if not quick:
        figure.savefig(PICTURE, dpi=100)


if __name__ == "__main__":
    main()

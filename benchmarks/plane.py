r"""Seven kinds of generative model on 2000 points of eight Gaussians in the plane, by the KL divergence from the data.

    python -m benchmarks plane                                  # results/plane.jsonl and docs/plane.png
    python -m benchmarks plane --resume                         # goes on from where it was stopped
    python -m benchmarks plane --resume --names CNF --seeds 2   # a part of it
    python -m benchmarks plane --quick                          # short trainings and one seed, nothing written

The means are on a circle of radius 4 / sqrt 2, the covariance is 0.1 I. Each model gets the same 2000 points, with
three seeds. "KDE" is KL(p, q) = sum p log(p / q) on a grid of 100 x 100 over [-5, 5]^2, where p and q are densities of
Gaussian kernels of bandwidth .4 on 2000 fresh points of the data and on 2000 samples, in the mean of eight such pairs,
as one pair has a deviation of .002; "floor" has other fresh points in place of samples. "exact" is the mean of
log p - log q over 2000 fresh points, where a model has a density: that of a flow or diffusion is `ds.log_prob`; of the
VAE it is the importance-weighted bound of 500 draws.

- GMM: scikit-learn's EM with eight components.
- VAE: two numbers of latents, a Gaussian decoder whose variance is learned (Kingma and Welling, 1312.6114).
- RealNVP: eight affine couplings (Dinh et al., 1605.08803).
- GAN: the non-saturating loss (Goodfellow et al., 1406.2661).
- diffusion: the noise on the path "vp"; flow matching: the velocity on "condot"; times by a law of sigma / alpha, most
  of them where the modes part. `ds.sample` with 20 calls.
- CNF: a velocity trained by its likelihood, `ds.log_prob(.., gradient=True)` (Chen et al., 1806.07366).
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from record import Recorder
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

import diffsolve as ds
from diffsolve.models import Model
from diffsolve.reference.mixture import ring
from diffsolve.reference.mlp import MLP

plt.style.use("diffsolve.common.look")
HERE = Path(__file__).resolve().parent
PICTURE, CACHE = HERE.parent / "docs" / "plane.png", HERE / ".cache" / "plane"
POINTS, BATCH, SEEDS, PAIRS = 2000, 256, (0, 1, 2), 8
TIMES = "log-normal(mean=0, std=1.3)"
DATA = ring(radius=4 / math.sqrt(2), std=math.sqrt(0.1))
Sampler = Callable[[int, int], Tensor]
Density = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Fitted:
    """A trained model: its samples by (number, seed), and log q where it has one."""

    sample: Sampler
    log_prob: Density | None = None


def points(n: int, seed: int) -> Tensor:
    return DATA.sample(n, seed=seed).float()


def layers(*sizes: int) -> nn.Sequential:
    """Linear layers with SiLU between."""
    parts: list[nn.Module] = []
    for a, b in zip(sizes, sizes[1:], strict=False):
        parts += [nn.Linear(a, b), nn.SiLU()]
    return nn.Sequential(*parts[:-1])


def batches(x: Tensor, steps: int, seed: int) -> Iterator[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield x[torch.randint(len(x), (BATCH,), generator=draw)]


def descended(net: nn.Module, loss: Callable[[Tensor], Tensor], x: Tensor, steps: int, seed: int, lr: float) -> None:
    """Adam with a cosine."""
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for batch in batches(x, steps, seed):
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()
        schedule.step()


def normal(x: Tensor) -> Tensor:
    """The log-density of standard normals, summed over the last axis."""
    return -(x.square() + math.log(2 * math.pi)).sum(-1) / 2


def gmm(x: Tensor, steps: int, seed: int) -> Fitted:
    model = GaussianMixture(len(DATA.means), n_init=3, random_state=seed).fit(x.numpy())

    def sample(n: int, seed: int) -> Tensor:
        model.random_state = seed
        return torch.from_numpy(model.sample(n)[0]).float()

    return Fitted(sample, lambda y: torch.from_numpy(model.score_samples(y.numpy())).float())


class VAE(nn.Module):
    """Gaussian encoder and decoder; the decoder's standard deviation is one number."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = layers(2, 128, 128, 4), layers(2, 128, 128, 2)
        self.log_std = nn.Parameter(torch.zeros(()))

    def terms(self, x: Tensor) -> Tensor:
        """One draw of log p(x, z) - log q(z | x), of each x."""
        mean, log_std = self.encoder(x).chunk(2, -1)
        eps = torch.randn_like(mean)
        z = mean + log_std.exp() * eps
        posterior = normal(eps) - log_std.sum(-1)
        given = normal((x - self.decoder(z)) / self.log_std.exp()) - 2 * self.log_std
        return normal(z) + given - posterior


def vae(x: Tensor, steps: int, seed: int) -> Fitted:
    net = VAE()
    descended(net, lambda batch: -net.terms(batch).mean(), x, steps, seed, 1e-3)

    def sample(n: int, seed: int) -> Tensor:
        z, noise = torch.randn(2, n, 2, generator=torch.Generator().manual_seed(seed))
        return net.decoder(z) + net.log_std.exp() * noise

    return Fitted(sample, lambda y: torch.stack([net.terms(y) for _ in range(500)]).logsumexp(0) - math.log(500))


class RealNVP(nn.Module):
    """Affine couplings of the two numbers, each of which moves one by a function of the other."""

    def __init__(self, count: int = 8) -> None:
        super().__init__()
        self.parts = nn.ModuleList(layers(1, 64, 64, 2) for _ in range(count))

    def to_noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z and log |dz / dx|."""
        a, b = x.unbind(-1)
        volume = torch.zeros_like(a)
        for part in self.parts:
            log_scale, shift = part(a[:, None]).unbind(-1)
            log_scale = torch.tanh(log_scale)
            a, b = b * log_scale.exp() + shift, a
            volume = volume + log_scale
        return torch.stack([a, b], -1), volume

    def to_data(self, z: Tensor) -> Tensor:
        a, b = z.unbind(-1)
        for part in reversed(self.parts):
            log_scale, shift = part(b[:, None]).unbind(-1)
            a, b = b, (a - shift) * torch.exp(-torch.tanh(log_scale))
        return torch.stack([a, b], -1)

    def log_prob(self, x: Tensor) -> Tensor:
        z, volume = self.to_noise(x)
        return normal(z) + volume


def realnvp(x: Tensor, steps: int, seed: int) -> Fitted:
    net = RealNVP()
    descended(net, lambda batch: -net.log_prob(batch).mean(), x, steps, seed, 2e-3)
    return Fitted(lambda n, seed: net.to_data(ds.Key(seed).normal((n, 2))), net.log_prob)


def gan(x: Tensor, steps: int, seed: int) -> Fitted:
    generator, judge = layers(8, 128, 128, 2), layers(2, 128, 128, 1)
    ours = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.99))
    theirs = torch.optim.Adam(judge.parameters(), lr=4e-4, betas=(0.5, 0.99))
    for real in batches(x, steps, seed):
        made = generator(torch.randn(BATCH, 8))
        theirs.zero_grad()
        (F.softplus(-judge(real)) + F.softplus(judge(made.detach()))).mean().backward()
        theirs.step()
        ours.zero_grad()
        F.softplus(-judge(made)).mean().backward()
        ours.step()
    return Fitted(lambda n, seed: generator(ds.Key(seed).normal((n, 8))))


def solved(model: Model) -> Fitted:
    return Fitted(
        lambda n, seed: ds.sample(model, (n, 2), nfe=20, seed=seed),
        lambda y: ds.log_prob(model, y, solver="rk4", steps=20).value,
    )


def regressed(path: str, predicts: str) -> Callable[[Tensor, int, int], Fitted]:
    def train(x: Tensor, steps: int, seed: int) -> Fitted:
        model = ds.adapt(MLP(2, 128, 3), path, predicts)
        how = {"steps": 3 * steps // 2, "batch": BATCH, "lr": 2e-3, "ema": 0.998, "objective": {"times": TIMES}}
        with tempfile.TemporaryDirectory() as folder:
            ds.training.fit(model, x, Path(folder) / "w", seed=seed, **how)
        return solved(model)

    return train


class Field(nn.Module):
    """A velocity that is smooth in time: told fast sines, it lowers the loss between a solver's nodes, not the KL."""

    def __init__(self) -> None:
        super().__init__()
        self.net = layers(3, 64, 64, 64, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.net(torch.cat([x, t[:, None]], 1))
        return out


def cnf(x: Tensor, steps: int, seed: int) -> Fitted:
    net = Field()
    model = ds.adapt(net, "condot", "velocity")

    def loss(batch: Tensor) -> Tensor:
        return -ds.log_prob(model, batch, solver="rk4", steps=8, trace="exact", gradient=True).value.mean()

    descended(net, loss, x, steps // 5, seed, 5e-3)
    return solved(model)


MODELS: dict[str, Callable[[Tensor, int, int], Fitted]] = {
    "GMM": gmm, "VAE": vae, "RealNVP": realnvp, "GAN": gan, "diffusion": regressed("vp", "noise"),
    "flow matching": regressed("condot", "velocity"), "CNF": cnf,
}  # fmt: skip


def kde(x: Tensor, width: float = 0.4, side: float = 5.0, cells: int = 100) -> Tensor:
    """The density of kernels on a grid, of sum 1."""
    axis = torch.linspace(-side, side, cells, dtype=torch.float64)
    a, b = (torch.exp(-((axis[:, None] - x[:, k].double()) ** 2) / (2 * width**2)) for k in range(2))
    density = a @ b.T
    return density / density.sum()


def divergence(x: Tensor, y: Tensor) -> float:
    """KL of two sets of points by their kernels' densities."""
    p, q = kde(x), kde(y)
    tiny = torch.finfo(p.dtype).tiny
    return float((p * ((p + tiny) / (q + tiny)).log()).sum())


def trained(name: str, seed: int, steps: int) -> tuple[list[Tensor], float]:
    """Draws of samples of one model, and the mean of log p - log q, NaN where there is no density."""
    torch.manual_seed(seed)
    fitted = MODELS[name](points(POINTS, seed), steps, seed)
    with torch.no_grad():
        draws = [fitted.sample(POINTS, 50 + PAIRS * seed + k) for k in range(PAIRS)]
        if fitted.log_prob is None:
            return draws, math.nan
        fresh = points(POINTS, 99)
        return draws, float((DATA.log_prob(fresh.double()).float() - fitted.log_prob(fresh)).mean())


def mean_divergence(judges: Sequence[Tensor], draws: Sequence[Tensor]) -> float:
    return statistics.mean(divergence(p, q) for p, q in zip(judges, draws, strict=True))


def picture(seen: dict[str, Tensor], file: Path) -> None:
    figure, axes = plt.subplots(2, 4, figsize=(12, 6.4))
    for axis, (name, x) in zip(axes.flat, seen.items(), strict=True):
        axis.plot(*x.T, ".", ms=1.5, alpha=0.5)
        axis.set(title=name, xlim=(-4.5, 4.5), ylim=(-4.5, 4.5), xticks=[], yticks=[], aspect="equal")
    figure.savefig(file, dpi=100)


def summary(scores: Sequence[float | None]) -> tuple[float | None, float | None]:
    """The mean and the standard deviation over seeds, where there are any and enough."""
    known = [score for score in scores if score is not None]
    if len(known) < len(scores) or not known:
        return None, None
    return statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Seven kinds of generative model in the plane.")
    parser.add_argument("--names", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS)
    parser.add_argument("--resume", action="store_true", help="keep what is there, and do what is missing")
    parser.add_argument("--quick", action="store_true", help="short trainings and one seed, nothing written")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    recorder = Recorder("plane", None if options.quick else "", resume=options.resume)
    judges = [points(POINTS, 100 + k) for k in range(PAIRS)]
    single = recorder.table("one training", ["model", "seed"], {"KDE": ".4f", "exact": ".4f", "training": (".0f", "s")})
    for name, seed in product(options.names, SEEDS[:1] if options.quick else options.seeds):
        if single.value([name, seed], "KDE") is not None:
            continue
        began = time.process_time()
        draws, exact = trained(name, seed, 400 if options.quick else 4000)
        cost = time.process_time() - began
        kl = mean_divergence(judges, draws)
        if not options.quick and seed == SEEDS[0]:
            CACHE.mkdir(parents=True, exist_ok=True)
            torch.save(draws[0], CACHE / f"{name}.pt")
        single.add([name, seed], [kl, None if math.isnan(exact) else exact, cost])
    columns = {f"{kind}, {of}": ".4f" for kind in ("KDE", "exact") for of in ("mean", "deviation")}
    table = recorder.table("three trainings", ["model"], columns)
    floors = [mean_divergence(judges, [points(POINTS, 200 + PAIRS * n + k) for k in range(PAIRS)]) for n in range(20)]
    table.add(["floor"], [*summary(floors), 0.0, None])
    for name in MODELS:
        if all(single.value([name, seed], "KDE") is not None for seed in SEEDS):
            kinds = ([single.value([name, seed], kind) for seed in SEEDS] for kind in ("KDE", "exact"))
            table.add([name], [number for scores in kinds for number in summary(scores)])
    files = {name: CACHE / f"{name}.pt" for name in MODELS}
    if not options.quick and all(file.exists() for file in files.values()):
        picture({"data": judges[0]} | {name: torch.load(file) for name, file in files.items()}, PICTURE)


if __name__ == "__main__":
    main()

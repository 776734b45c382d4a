r"""Small trained networks of every prediction, to choose rules on and to report them on: networks that err.

    python benchmarks/networks.py            # train what is not there yet, about 75 minutes on one core
    python benchmarks/networks.py --list
    python benchmarks/networks.py --errors   # how far each is from the exact posterior mean over its data

Two moons in the plane, scikit-learn's digits of 8 x 8, the same made larger ("wide", 28 x 28) and Fashion-MNIST of
28 x 28 pixels (the Debian package `dataset-fashion-mnist`), each with networks of several predictions and paths. A rule
is chosen on those whose role is "tune" and reported on the others. Weights lie in `.cache/networks`, the same from the
same seed on one machine.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diffsolve as ds
from diffsolve.common.files import read_tensors, write_tensors
from diffsolve.models import Model
from diffsolve.reference.data import fashion
from diffsolve.reference.mlp import MLP
from diffsolve.reference.unet import UNet
from diffsolve.tableau.frames import PREDICTIONS
from diffsolve.tableau.theory import output_unit

CACHE = Path(__file__).resolve().parent / ".cache" / "networks"
KEY = "diffsolve"


@dataclass(frozen=True)
class Spec:
    """A network: its data, its path and prediction, how long it is trained and what it is for."""

    data: str
    path: str
    predicts: str
    role: str
    labelled: bool = False
    longer: int = 1
    """Times the steps that the data's networks are trained for."""

    @property
    def name(self) -> str:
        return f"{self.data}-{self.predicts}-{self.path}" + ("-labelled" if self.labelled else "")


NETWORKS = {
    spec.name: spec
    for spec in (
        Spec("moons", "ddpm", "noise", "tune"),
        Spec("moons", "edm", "edm", "tune"),
        Spec("moons", "condot", "velocity", "report"),
        Spec("moons", "ve", "score", "report"),
        Spec("digits", "ddpm", "noise", "tune", labelled=True),
        Spec("digits", "edm", "denoised", "report"),
        Spec("digits", "ve", "score", "tune"),
        Spec("digits", "cosine", "v", "tune"),
        Spec("digits", "vp", "score", "report"),
        Spec("digits", "condot", "velocity", "tune"),
        # With 700 steps its own flow ends at twice the data's size.
        Spec("fashion", "ddpm", "noise", "tune", longer=4),
        Spec("fashion", "edm", "edm", "tune"),
        Spec("fashion", "cosine", "v", "report"),
        Spec("fashion", "condot", "velocity", "report"),
        Spec("wide", "ddpm", "noise", "tune", longer=2),
        Spec("wide", "ve", "score", "report", longer=2),
    )
}
STEPS = {"moons": 8000, "digits": 6000, "fashion": 700, "wide": 700}
BATCH = {"moons": 256, "digits": 128, "fashion": 48, "wide": 48}
LEVELS = (-4, -3, -2, -1, 0, 1, 2, 3)
SHAPES = {"moons": (2,), "digits": (1, 8, 8), "fashion": (1, 28, 28), "wide": (1, 28, 28)}


class Network(nn.Module):
    """The network on the path's clock: scales input, time and output as networks of its kind do."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec, self.where = spec, ds.paths.named(spec.path)
        classes = 10 if spec.labelled else 0
        if SHAPES[spec.data] == (1, 28, 28):
            self.body: nn.Module = UNet(1, 16, (1, 2, 2), num_classes=classes)
        else:
            self.body = MLP(
                {"moons": 2, "digits": 64}[spec.data], 128 if spec.data == "moons" else 256, 3, num_classes=classes
            )

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        wide = [1] * (x.dim() - 1)
        if self.spec.predicts == "edm":
            return self.body(x, (t + 2) / 4, label=label)  # x is scaled and t is c_noise
        if self.spec.path == "ddpm":
            return self.body(x, t / 1000, label=label)
        if self.spec.path not in ("edm", "ve"):
            out = self.body(x, t, label=label)
            return out / self.where.at(t).sigma.float().view(-1, *wide) if self.spec.predicts == "score" else out
        sigma = self.where.at(t).sigma.float().view(-1, *wide)
        h = self.body(x / (sigma**2 + 0.25) ** 0.5, (sigma.flatten().log() + 6) / 10, label=label)
        if self.spec.predicts == "score":
            return h / sigma
        return x * 0.25 / (sigma**2 + 0.25) + h * 0.5 * sigma / (sigma**2 + 0.25) ** 0.5


def data_of(name: str) -> tuple[Tensor, Tensor]:
    """The training data of about unit size, and labels."""
    if name == "moons":
        g = torch.Generator().manual_seed(0)
        angle = torch.rand(20000, generator=g) * math.pi
        label = torch.arange(20000) % 2
        x = torch.stack([angle.cos() + label * 1.0 - 0.5, angle.sin() * (1 - 2 * label) - 0.25 + 0.5 * label], 1)
        return x + 0.05 * torch.randn(x.shape, generator=g), label
    if name in ("digits", "wide"):
        from diffsolve.reference.digits import load_data

        images, label = load_data()
        return (images if name == "digits" else F.interpolate(images, (28, 28), mode="bilinear")), label
    return fashion()


def example(spec: Spec, x0: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The network's input, its time, its target and the weight of the loss."""
    path, wide = ds.paths.named(spec.path), [1] * (x0.dim() - 1)
    if spec.path == "edm":
        t = (torch.randn(len(x0)) * 1.2 - 1.2).exp().clamp(0.002, 80).double()
    elif spec.path == "ddpm":
        t = torch.randint(0, 1000, (len(x0),)).double()
    else:
        u = (torch.arange(len(x0)) + torch.rand(len(x0))) / len(x0)
        t = path.t_noise + u.double() * (path.t_last - path.t_noise)
        if spec.path == "ve":
            lam = path.lam(path.t_noise) + u.double() * (path.lam(path.t_last) - path.lam(path.t_noise))
            t = path.time(lam)
    p, noise = path.at(t), torch.randn_like(x0)
    alpha, sigma = (level.float().view(-1, *wide) for level in (p.alpha, p.sigma))
    a, b = (torch.as_tensor(w).float().view(-1, *wide) for w in PREDICTIONS[spec.predicts](p, 0.5))
    weight = torch.ones_like(sigma)
    if spec.predicts == "score":
        weight = sigma
    elif spec.predicts == "denoised":
        weight = (sigma**2 + 0.25) ** 0.5 / (0.5 * sigma)
    x, clock = alpha * x0 + sigma * noise, t
    if spec.predicts == "edm":
        x, clock = x / (sigma**2 + 0.25 * alpha**2) ** 0.5, sigma.flatten().log() / 4
    return x, clock, a * x0 + b * noise, weight


def train(spec: Spec, seed: int = 0) -> Network:
    """Train the network and write it to the cache."""
    torch.manual_seed(seed)
    net, (images, labels) = Network(spec), data_of(spec.data)
    average = {name: p.detach().clone() for name, p in net.named_parameters()}
    steps, batch = STEPS[spec.data] * spec.longer, BATCH[spec.data]
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-4, foreach=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    began, loss = time.perf_counter(), 0.0
    for step in range(steps):
        rows = torch.randint(len(images), (batch,))
        x, t, target, weight = example(spec, images[rows])
        label = labels[rows].masked_fill(torch.rand(batch) < 0.15, -1) if spec.labelled else None
        error = ((net(x, t, label) - target) * weight).square().mean()
        optimizer.zero_grad()
        error.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        loss += (error.item() - loss) / min(step + 1, 200)
        decay = min(0.995, step / (step + 9))
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in net.parameters()], 1 - decay)
    CACHE.mkdir(parents=True, exist_ok=True)
    write_tensors(CACHE / f"{spec.name}.safetensors", {k: v.half() for k, v in average.items()}, KEY, {"loss": loss})
    print(f"{spec.name}: loss {loss:.4f}, {time.perf_counter() - began:.0f} s", flush=True)
    return net


def load(name: str) -> tuple[Model, tuple[int, ...]]:
    """A network by name, trained first if need be, and the shape of an event."""
    spec = NETWORKS[name]
    file = CACHE / f"{name}.safetensors"
    if not file.exists():
        train(spec)
    net = Network(spec)
    weights, _ = read_tensors(file, KEY)
    net.load_state_dict({key: value.float() for key, value in weights.items()})
    net.eval().requires_grad_(False)
    return ds.adapt(net, spec.path, spec.predicts), SHAPES[spec.data]


@torch.no_grad()
def error_of(name: str, levels: Sequence[float] = LEVELS, count: int = 128) -> list[float]:
    """How far a network is from the exact posterior mean over its training data, by lambda.

    The root mean square in units of what it predicts (of the noise for a score), at noised training data. Where there
    is little noise that mean is the training example itself, and a network that generalises differs from it on purpose.
    """
    spec, (model, _), (data, _) = NETWORKS[name], load(name), data_of(NETWORKS[name].data)
    g = torch.Generator().manual_seed(0)
    x0 = data[torch.randint(len(data), (count,), generator=g)]
    noise, flat, found = torch.randn(x0.shape, generator=g), data.flatten(1), []
    low, high = float(model.path.lam(model.path.t_noise)), float(model.path.lam(model.path.t_last))
    for lam in levels:
        if not low <= lam <= high:
            found.append(math.nan)
            continue
        t = float(model.path.time(lam))
        p = model.path.at(torch.tensor(t, dtype=torch.float64))
        alpha, sigma = float(p.alpha), float(p.sigma)
        x = alpha * x0 + sigma * noise
        closeness = -torch.cdist(x.flatten(1), alpha * flat).square() / (2 * sigma**2)
        exact = (closeness.softmax(1) @ flat).view_as(x)
        unit = float(output_unit(spec.predicts, p))
        found.append(float((model.denoised(x, t) - exact).square().mean().sqrt()) / sigma / abs(unit))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the small networks that other benchmarks use.")
    parser.add_argument("--list", action="store_true", help="only list them")
    parser.add_argument("--names", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument(
        "--errors", action="store_true", help="how far each is from its exact posterior mean, by lambda"
    )
    options = parser.parse_args(argv)
    if options.errors:
        print(f"{'lambda':32}", *(f"{lam:5.0f}" for lam in LEVELS))
    for name in options.names:
        if options.errors:
            print(f"{name:32}", *(f"{error:5.3f}" for error in error_of(name)), flush=True)
        elif options.list:
            print(f"{name:32} {NETWORKS[name].role}")
        elif not (CACHE / f"{name}.safetensors").exists():
            train(NETWORKS[name])


if __name__ == "__main__":
    main()

"""Adam on batches of the noises, through the graph of the run: for losses that are no distance."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.tensors import column, flat
from diffsolve.execute import Network, network_times
from diffsolve.tuning.progress import Learnable, Progress
from diffsolve.tuning.runs import Noises
from diffsolve.tuning.student import Student
from diffsolve.tuning.task import Task

__all__ = ["Adam"]

BETAS = (0.9, 0.99)
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
VALIDATIONS = 20  # how often the held-out loss is measured, roughly
WARM = 10  # iterations in which the learning rate rises


class Adam:
    """Adam with a warm-up and a cosine decay to 0, through the graph of the whole run.

    Raises:
        ValueError: if the network has no derivative in its input, or in its time where times are learned.
    """

    def __init__(self, task: Task, student: Learnable, progress: Progress) -> None:
        self.task, self.student, self.progress = task, student, progress
        self.rate, self.gradient = task.settings["lr"], task.settings["gradient"]
        self.optimiser = torch.optim.Adam(student.parameters.values(), betas=BETAS)
        for name, p in student.parameters.items():
            self.optimiser.state[p] = {key: progress.moments[f"{key}/{name}"] for key in MOMENTS}
        self.check()

    def check(self) -> None:
        """Check that the network has the derivatives that are needed."""
        assert isinstance(self.student, Student)
        _check_derivatives(self.student, self.task.noises.some(self.task.learning[:1]))

    @staticmethod
    def moments(student: Learnable) -> dict[str, Tensor]:
        """Adam's own initial state, created here so that a checkpoint can be copied into it."""
        moments: dict[str, Tensor] = {}
        for name, p in student.parameters.items():
            own = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            moments |= {f"{key}/{name}": moment.detach() for key, moment in own.items()}
        return moments

    def learn(self, iterations: int) -> None:
        """Run the remaining iterations and the last validation."""
        progress, gap = self.progress, max(1, iterations // VALIDATIONS)
        with torch.enable_grad():
            while progress.iteration < iterations:
                if progress.iteration % gap == 0:
                    self.validate()
                self.iterate(progress.iteration, iterations)
        self.validate()

    def validate(self) -> None:
        if self.progress.fresh:
            self.progress.validated(self.task.verdict(self.student.tableau()))
            self.progress.save()

    def iterate(self, k: int, iterations: int) -> None:
        """One step, on a batch that depends only on the seed and the iteration.

        Raises:
            FloatingPointError: if the loss or its gradient is not finite.
        """
        task, parameters = self.task, list(self.student.parameters.values())
        order = np.random.default_rng([task.seed, k]).permutation(len(task.learning))
        index = task.learning[torch.from_numpy(order[: task.batch])]
        loss, gradients = self.gradients(index, parameters)
        if not math.isfinite(loss.item()) or not all(bool(g.isfinite().all()) for g in gradients):
            raise FloatingPointError(
                f"the loss became {loss.item()}, or its gradient not finite, in iteration {k}: a smaller lr may help"
            )
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g
        self.optimiser.param_groups[0]["lr"] = (
            self.rate * min(1.0, (k + 1) / WARM) * 0.5 * (1 + math.cos(math.pi * k / iterations))
        )
        self.optimiser.step()
        self.progress.advance(loss.item())

    def gradients(self, index: Tensor, parameters: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The loss of a batch and its gradients; each rank runs a part of it, and all see all ends.

        A loss need not be a mean over samples, so it is taken of the whole batch, and its gradient by the ends of each
        rank's own part.
        """
        task, ranks = self.task, self.task.ranks
        assert isinstance(self.student, Student)
        task.calls += len(index) * self.student.calls * (2 if self.gradient == "checkpoint" else 1)
        mine = slice(*(len(index) * rank // ranks.size for rank in (ranks.rank, ranks.rank + 1)))
        some = task.noises.some(index[mine])
        if task.settings["ball"]:
            some = replace(some, x=self.beside(some, task.ends[index[mine].to(some.x.device)]))
        x = self.student(some.x, some.cond, some.guidance, self.gradient)
        ends = task.ends[index.to(x.device)]
        if ranks.size == 1:
            loss = task.loss(x, ends).mean()
            return loss, list(torch.autograd.grad(loss, parameters))
        whole = torch.zeros_like(ends)
        whole[mine] = x.detach()
        whole = ranks.summed(whole, x.device).requires_grad_()
        loss = task.loss(whole, ends).mean()
        (slope,) = torch.autograd.grad(loss, whole)
        own = torch.autograd.grad(x, parameters, slope[mine])
        return loss, [ranks.summed(g, x.device) for g in own]

    def beside(self, noises: Noises, ends: Tensor) -> Tensor:
        """Where in the ball about each noise the present run has the least loss, to first order.

        That is x - min(r, L / |g|) g / |g|, with g the derivative of the loss L by x: no further than to a loss of 0.
        """
        student, task = self.student, self.task
        assert isinstance(student, Student)
        x = noises.x.clone().requires_grad_()
        loss = task.loss(student(x, noises.cond, noises.guidance, self.gradient), ends)
        (slope,) = torch.autograd.grad(loss.sum(), x)
        task.calls += len(x) * student.calls * (2 if self.gradient == "checkpoint" else 1)
        size = flat(slope).norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny)
        most = task.settings["ball"] * student.model.path.prior_std(float(student.tableau().times[0]))
        step = (loss.detach() / size).clamp(max=most) if loss.dim() else torch.full_like(size, most)
        return noises.x - column(step / size, x) * slope


def _check_derivatives(student: Student, noises: Noises) -> None:
    """Check that the network has the derivatives that its graph must give.

    Raises:
        ValueError: if it has none in its input, or none in its time where the times are learned.
    """
    model, times = student.model, student.logits.requires_grad
    tableau = student.tableau()
    t = torch.tensor(tableau.calls[:1, 0], requires_grad=True)
    x = noises.x.clone().requires_grad_()
    with torch.enable_grad():
        network = replace(Network.of(model, tableau, noises.guidance, x), times=network_times(model, t, x))
        out = network(0, x, noises.cond)
        gradients = torch.autograd.grad(out.sum(), [x, t], allow_unused=True) if out.requires_grad else (None, None)
    if gradients[0] is None:
        raise ValueError("net must have a derivative in its input, got an output without a graph back to it")
    if times and gradients[1] is None:
        raise ValueError(
            f"net must have a derivative in its time, got none with clock={model.clock!r}; times=False learns the "
            "weights alone"
        )

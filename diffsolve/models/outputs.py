"""Networks that return more than a prediction: what of it is the prediction, and what the rest says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from diffsolve.common.checks import choice, described

__all__ = ["LearnedVariance", "Picked"]


@dataclass(frozen=True)
class LearnedVariance:
    r"""Of a network of twice the channels, (B, 2 C, ..), the first half is the prediction; the second, v, tells the
    variance of a DDPM step, element by element (Nichol and Dhariwal, 2102.09672, eq. 15; `learn_sigma` of OpenAI's
    improved-diffusion and guided-diffusion). `ds.adapt(net, "ddpm", "noise", output=ds.models.LearnedVariance())`.

    A run with `variance="learned"` has noise of that variance; any other leaves the second half alone.

    Args:
        kind: "range", log variance = (v + 1) / 2 log large + (1 - v) / 2 log small, between the variances of
            `ds.solvers.DDPM`; or "log", v itself.

    Raises:
        ValueError: if kind is another; in a run, if the channels of the output are not even in number.
    """

    kind: str = "range"

    def __post_init__(self) -> None:
        choice("kind", self.kind, ("range", "log"))

    def halves(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """(prediction, v) of the network's return value."""
        if not isinstance(out, Tensor) or out.dim() < 2 or out.shape[1] % 2:
            raise ValueError(f"output of net must have twice the channels of x, got {described(out)}")
        prediction, v = out.chunk(2, 1)
        return prediction, v

    def __call__(self, out: Tensor) -> Tensor:
        """The prediction."""
        return self.halves(out)[0]


class Picked(nn.Module):
    """A network of which `output` picks the prediction, with its parameters, device and mode."""

    def __init__(self, net: Callable[..., Any], output: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.net, self.output = net, output
        self.train(net.training if isinstance(net, nn.Module) else False)

    def forward(self, x: Tensor, *times: Tensor, **cond: Any) -> Tensor:
        """The prediction."""
        return self.output(self.net(x, *times, **cond))

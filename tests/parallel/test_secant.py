"""When a secant of a call's last two inputs is a slope, and when it is rounding."""

import pytest
import torch

from diffsolve.parallel.secant import Slopes


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("step", "kept"), [(1e-2, True), (1e-4, True), (1e-6, False)])
def test_inputs_apart_by_rounding_have_no_slope(size, step, kept):
    """In float32, whatever the unit of x: the bound is 64 eps = 8e-6 of the size of x."""
    part, slot, column = slice(0, 1), torch.tensor([0]), torch.tensor([0])
    x = size * torch.tensor([[1.0, -2.0, 0.5, 1.5]])
    slopes = Slopes(torch.zeros(1, 1, 4))
    slopes.learn(part, slot, column, x, torch.zeros_like(x))
    moved = x * (1 + step)
    slopes.learn(part, slot, column, moved, -3 * (moved - x))
    assert float(slopes.j) == pytest.approx(-3.0 if kept else 0.0, rel=1e-4)


def test_a_slope_makes_a_line_through_the_last_call():
    """f(y) = f(x) + j (y - x): f itself at y = x, and the call before last on it too."""
    part, slot, column = slice(0, 1), torch.tensor([0]), torch.tensor([0])
    x, moved = torch.tensor([[1.0, -2.0]]), torch.tensor([[1.5, -1.0]])
    f, after = torch.tensor([[0.2, 0.7]]), torch.tensor([[0.2, 0.7]]) - 3 * (moved - x)
    slopes = Slopes(torch.zeros(1, 1, 2))
    slopes.learn(part, slot, column, x, f)
    slopes.learn(part, slot, column, moved, after - f)
    constant, j = slopes(after[None], part)
    torch.testing.assert_close(constant + j[..., None] * moved, after[None])
    torch.testing.assert_close(constant + j[..., None] * x, f[None])

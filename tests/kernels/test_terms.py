"""The order of a sum, the limits of one update, and the layout of its results."""

import re
from pathlib import Path

import pytest
import torch

from diffsolve import kernels, native
from diffsolve.kernels import loop
from diffsolve.kernels.terms import terms
from diffsolve.kernels.update import OUT, S, Y


def test_a_weight_of_one_comes_first_and_the_output_never_does():
    assert terms({S: 0.5, Y: 1.0}) == ((Y, 1.0), (S, 0.5))
    assert terms({S: 0.5, Y: 2.0}) == ((S, 0.5), (Y, 2.0))
    assert terms({OUT: 1.0, S: 0.5}) == ((S, 0.5), (OUT, 1.0))
    assert terms({S: 0.0, Y: -1.0}) == ((Y, -1.0),)


def test_the_limits_are_those_of_the_loops_in_c():
    source = Path(native.__file__).with_name("loops.c").read_text()
    limits = {name: int(value) for name, value in re.findall(r"#define (INPUTS|RESULTS) (\d+)", source)}
    assert limits == {"INPUTS": native.INPUTS, "RESULTS": native.RESULTS}
    one = [(0, 1.0)]
    assert loop.recipe([0], [one] * native.RESULTS).results == native.RESULTS
    assert loop.recipe([0], [one] * (native.RESULTS + 1)) is None
    assert len(loop.recipe(range(native.INPUTS), [one]).places) == native.INPUTS
    assert loop.recipe(range(native.INPUTS + 1), [one]) is None


@pytest.mark.parametrize("choice", ["torch", "native", "triton"])
def test_results_have_the_layout_of_the_first_input(choice, monkeypatch):
    monkeypatch.setenv("DIFFSOLVE_KERNELS", choice)
    plain = torch.randn(2, 3, 4, 4)
    last = plain.to(memory_format=torch.channels_last)
    for inputs in ([plain, last], [last, plain]):
        (out,) = kernels.combine(inputs, torch.tensor([[1.0, 2.0]]))
        assert out.stride() == inputs[0].stride()

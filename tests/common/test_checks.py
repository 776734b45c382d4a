"""One grammar: `steps must be an integer >= 1, got 0.5`."""

import numpy as np
import pytest
import torch

from diffsolve.common import checks


def test_integers():
    for value in (3, np.int64(3), torch.tensor(3)):
        assert checks.integer("n", value, 1) == 3
        assert type(checks.integer("n", value, 1)) is int


@pytest.mark.parametrize(
    ("check", "says"),
    [
        (lambda: checks.integer("n", 0.5, 1), "n must be an integer >= 1, got 0.5"),
        (lambda: checks.integer("n", True), "n must be an integer, got True"),
        (lambda: checks.integer("n", 0, 1), "n must be an integer >= 1, got 0"),
        (lambda: checks.integer("n", 9, 1, 8), "n must be an integer from 1 to 8, got 9"),
        (lambda: checks.integer("n", "3"), "n must be an integer, got '3'"),
        (lambda: checks.integer("n", np.ones(2, int)), r"n must be an integer, got ndarray of shape \(2,\)"),
        (lambda: checks.number("x", "1"), "x must be a finite number, got '1'"),
        (lambda: checks.number("x", float("nan")), "x must be a finite number, got nan"),
        (lambda: checks.number("x", 0, above=0), "x must be a finite number > 0, got 0"),
        (lambda: checks.number("x", 1.5, low=0, high=1), "x must be a finite number >= 0 and <= 1, got 1.5"),
        (lambda: checks.number("x", 1, low=0, below=1), "x must be a finite number >= 0 and < 1, got 1"),
        (lambda: checks.choice("c", 1, (True, "a", None)), "c must be True, 'a' or None, got 1"),
        (lambda: checks.choice("c", torch.ones(2), ("a",)), r"c must be 'a', got Tensor of shape \(2,\)"),
        (lambda: checks.exactly_one(a=None, b=None), "exactly one of a and b must be given, got none of them"),
        (lambda: checks.exactly_one(a=1, b=2), "exactly one of a and b must be given, got a=1, b=2"),
    ],
)
def test_bad_values(check, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        check()


def test_bad_types():
    with pytest.raises(TypeError, match="x must be a tensor, got 3"):
        checks.instance("x", 3, torch.Tensor, "a tensor")
    with pytest.raises(TypeError, match="cond must be a mapping of keyword arguments, got 3"):
        checks.mapping("cond", 3)


def test_good_values():
    assert checks.number("x", np.float32(0.5), low=0, high=1) == 0.5
    assert checks.choice("c", True, (True, 1)) is True
    assert checks.mapping("cond", None) == {}
    assert checks.exactly_one(a=None, b=2) == "b"
    assert len(checks.described("x" * 1000)) == 200

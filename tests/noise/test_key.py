"""Keys as values, and what they refuse: whatever makes the noise."""

import copy
import pickle

import numpy as np
import pytest
import torch

from diffsolve.noise import Key


def test_key_is_a_value():
    for seeds in ([1, 2], torch.tensor([1, 2]), np.array([1, 2]), range(1, 3)):
        assert Key(seeds) == Key((1, 2))
    assert Key(torch.tensor([2**63 + 1], dtype=torch.uint64)).seed == (2**63 + 1,)
    assert Key(np.int64(3)) == Key(torch.tensor(3)) == Key(3)
    assert type(Key(np.int64(3)).seed) is int
    assert hash(Key([1, 2])) == hash(Key((1, 2)))
    key = Key([1, 2])
    assert pickle.loads(pickle.dumps(key)) == copy.deepcopy(key) == key
    assert repr(Key(5, index=2)) == "Key(seed=5, index=2, antithetic=False, shared=False)"


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Key(-1), ValueError, ["seed must be", "got -1", "[0, 2**64)"]),
        (lambda: Key(2**64), ValueError, ["seed must be", "got 18446744073709551616", "[0, 2**64)"]),
        (lambda: Key(True), TypeError, ["seed must be", "got True", "int"]),
        (lambda: Key(1.0), TypeError, ["seed must be", "got 1.0", "int"]),
        (lambda: Key(None), TypeError, ["seed must be", "got None", "int"]),
        (lambda: Key("12"), TypeError, ["seed must be", "got '12'"]),
        (lambda: Key([1, -2]), ValueError, ["seed[1] must be", "got -2", "[0, 2**64)"]),
        (lambda: Key([1, False]), TypeError, ["seed[1] must be", "got False"]),
        (lambda: Key((1.5,)), TypeError, ["seed[0] must be", "got 1.5"]),
        (lambda: Key(torch.tensor([1.0])), TypeError, ["seed[0] must be", "got 1.0"]),
        (lambda: Key(torch.tensor([True])), TypeError, ["seed[0] must be", "got True"]),
        (lambda: Key(torch.tensor([[1]])), TypeError, ["seed[0] must be", "got [1]"]),
        (lambda: Key(1, index=-1), ValueError, ["index must be", "got -1"]),
        (lambda: Key(1, index=2**32), ValueError, ["index must be", "got 4294967296", "[0, 2**32)"]),
        (lambda: Key(1, index=1.0), TypeError, ["index must be", "got 1.0"]),
        (lambda: Key([1, 2], index=2), ValueError, ["index must be", "got 2", "seed"]),
        (lambda: Key([1], antithetic=True), ValueError, ["antithetic must be", "got True", "False"]),
        (lambda: Key([1], shared=True), ValueError, ["shared must be", "got True", "False"]),
        (lambda: Key(1, shared=1), TypeError, ["shared must be", "got 1"]),
        (lambda: Key(1, index=2**32 - 2).normal((3,)), ValueError, ["index must be", "got 4294967294 with 3 rows"]),
        (lambda: Key([1, 2]).normal((3, 2)), ValueError, ["seed must be one, or 3 for shape=(3, 2), got 2"]),
        (lambda: Key([1, 2]).normal((1, 2)), ValueError, ["seed must be one, or 1 for shape=(1, 2), got 2"]),
        (lambda: Key([]).normal((1,)), ValueError, ["seed must be one, or 1", "got 0"]),
        (lambda: Key(1).normal(()), ValueError, ["shape must be", "got ()"]),
        (lambda: Key(1).normal(3), TypeError, ["shape must be", "got 3"]),
        (lambda: Key(1).normal((2, -1)), ValueError, ["shape[1] must be", "got -1"]),
        (lambda: Key(1).normal((2, 1.0)), TypeError, ["shape[1] must be", "got 1.0"]),
        (lambda: Key(1).normal((1, 2**34 + 1)), ValueError, ["shape must have at most 2**34", "got (1, 17179869185)"]),
        (lambda: Key(1).normal((1,), row=-1), ValueError, ["row must be", "got -1"]),
        (lambda: Key(1).normal((1,), row=2**32), ValueError, ["row must be", "got 4294967296"]),
        (lambda: Key(1).normal((1,), row=0.0), TypeError, ["row must be", "got 0.0"]),
        (lambda: Key(1).normal((1,), row=torch.tensor(True)), TypeError, ["row must be", "got Tensor of shape ()"]),
        (lambda: Key(1).normal((1,), stream=99), ValueError, ["stream must be", "got 99", "PRIOR", "ROW"]),
        (lambda: Key(1).normal((1,), dtype=torch.int64), ValueError, ["dtype must be", "got torch.int64"]),
        (lambda: Key(1).normal((1,), dtype=torch.complex64), ValueError, ["dtype must be", "got torch.complex64"]),
        (lambda: Key(1).normal((2,), out=torch.empty(3)), ValueError, ["out must be of the shape (2,), got (3,)"]),
        (
            lambda: Key(1).normal((2,), dtype=torch.half, out=torch.empty(2)),
            ValueError,
            ["dtype must be", "got torch.float16"],
        ),
        (
            lambda: Key(1).normal((2,), device="meta", out=torch.empty(2)),
            ValueError,
            ["device must be", "got meta", "cpu"],
        ),
    ],
)
def test_errors_name_the_argument_the_value_and_what_is_accepted(make, error, words):
    with pytest.raises(error) as caught:
        make()
    for word in words:
        assert word in str(caught.value)

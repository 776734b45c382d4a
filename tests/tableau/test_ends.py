import math

import numpy as np
import pytest

import diffsolve as ds
from diffsolve import paths
from diffsolve.tableau.ends import CUT, end_frame, first_call, first_order_frame, last_call, may_call
from diffsolve.tableau.frames import FRAMES


@pytest.mark.parametrize(("path", "last", "callable_at_data"), [
    ("edm", 0.002, False), ("vp", 1e-3, False), ("condot", None, True), ("rectified", None, True),
])  # fmt: skip
def test_where_calls_are_made(path, last, callable_at_data):
    path = paths.named(path)
    assert may_call(path, path.t_data) == callable_at_data
    assert may_call(path, path.t_noise)
    assert last_call(path) == (last or float(path.time(CUT)))
    if last is None:
        assert float(path.rho(last_call(path))) == pytest.approx(1e-3)
        assert float(path.rho(last_call(path, math.log(50)))) == pytest.approx(0.02)
        assert float(path.rho(first_call(path))) == pytest.approx(1e3)


def test_which_call_stands_in():
    path = paths.CondOT()
    noise, inside, data = (path.nodes([t])[0] for t in (0.0, 0.5, 1.0))
    near = path.nodes([1 - 1e-9])[0]
    frames = {(s.t, t.t): first_order_frame(s, t).name for s in (noise, inside, near, data) for t in (inside, data)}
    assert {name for (s, t), name in frames.items() if s < 0.9} == {"denoised"}
    assert (frames[near.t, 1.0], frames[near.t, 0.5], frames[1.0, 0.5]) == ("denoised", "noise", "noise")
    for name, ends in {  # of the steps noise to inside, inside to data, data to inside
        "denoised": (None, "denoised", "noise"),
        "noise": ("denoised", "noise", "noise"),
        "lambda": ("denoised", "denoised", "noise"),
        "straight": (None, None, None),
        "native": (None, None, None),
    }.items():
        steps = (noise, inside), (inside, data), (data, inside)
        frames = [end_frame(FRAMES[name], path, s, t) for s, t in steps]
        assert tuple(frame and frame.name for frame in frames) == ends
        for frame, (s, t) in zip(frames, steps, strict=True):
            if frame:
                with np.errstate(all="ignore"):
                    assert np.isfinite(frame.step(s, t)).all()


def test_an_overshoot_next_to_the_data_is_no_end():
    """From sigma = 80 to .002 an ancestral step overshoots to 5e-8 and is noised again: nothing is called there."""
    made = ds.plan("edm", "dpm-2-ancestral", steps=2)
    assert made.calls[:, 2] == pytest.approx([80.0, 0.002, 0.002], rel=1e-6)
    heun = ds.solvers.named("heun(frame='noise')")(ds.paths.named("edm"), [1.0, 0.1, 1e-9])
    assert heun.calls[:, 2].tolist() == [1.0, 0.1, 0.1]  # which would be called there

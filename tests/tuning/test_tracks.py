"""Learning from the way of accurate runs, not their ends alone."""

import numpy as np
import pytest
import torch
from support.learning import RING, Net, moved, noise

import diffsolve as ds
from diffsolve.models.guidance import Guidance
from diffsolve.tuning import Distance, fit
from diffsolve.tuning.runs import Noises
from diffsolve.tuning.tangents import along
from diffsolve.tuning.tracks import Tracks, tracked

SMALL = {"teacher": 40, "seed": 0, "dtype": torch.float64, "iterations": 6, "solver": "unipc-3"}


def straight(path, times):
    at = path.nodes(np.asarray(times))
    return at.alpha + at.sigma, at.sigma / (at.alpha + at.sigma)


@pytest.mark.parametrize("path", ["condot", "edm", "vp"])
def test_tracks_are_the_way_of_a_run(path):
    model = ds.adapt(Net(), path, "denoised")
    x = noise() * model.path.prior_std()
    teacher = ds.plan(model, "ab-3(frame='straight')", steps=400)
    tracks = tracked(model, Noises(x, {}, Guidance(1.0)), teacher)
    nodes = ds.solve(model, noise=x, solver=teacher, trajectory=True).trajectory
    for k in (0, 7, 200, 399, 400):
        c, u = straight(model.path, teacher.times[[k]])
        torch.testing.assert_close(tracks.at(float(u[0]))[0] * float(c[0]), nodes[k], rtol=1e-9, atol=1e-9)
    for t in (teacher.times[150] * 0.4 + teacher.times[151] * 0.6, teacher.times[275:277].mean()):
        c, u = straight(model.path, [t])
        there = ds.sample(model, noise=x, solver="ab-3(frame='straight')", steps=400, stop=float(t))
        z, slope = tracks.at(float(u[0]))
        torch.testing.assert_close(z * float(c[0]), there, rtol=1e-3, atol=1e-3)
        h = 1e-6
        numeric = (tracks.at(float(u[0]) + h)[0] - tracks.at(float(u[0]) - h)[0]) / (2 * h)
        torch.testing.assert_close(slope, numeric, rtol=1e-5, atol=1e-6)


def test_the_last_step_is_a_parabola():
    """Through its two ends, with the velocity of the call at its beginning."""
    tracks = Tracks(np.array([0.5, 0.2]), torch.tensor([[1.0], [4.0]]).double(), torch.zeros(2, 1).double())
    model = ds.adapt(lambda x, t: x * 0 + 3, "condot", "velocity")
    found = tracked(model, Noises(noise(2), {}, Guidance(1.0)), ds.plan(model, "euler", steps=2))
    torch.testing.assert_close(found.v, torch.full_like(found.v, -3))  # dz/du of a constant velocity, at the end too
    torch.testing.assert_close(tracks.at(0.2)[0], torch.tensor([4.0]).double())


@pytest.mark.parametrize(("path", "also"), [("condot", ()), ("edm", ("told",)), ("vp", ())])
def test_what_it_is_off_by_along_the_way_and_its_derivative(path, also):
    model = ds.adapt(Net(), path, "denoised")
    noises = Noises(noise() * model.path.prior_std(), {}, Guidance(1.0))
    student = moved(model, nfe=4, history=3, also=also)
    tracks = tracked(model, noises, ds.plan(model, nfe=40))

    def off():
        table = student.tableau()
        run = ds.solve(model, noise=noises.x, solver=table, trajectory="calls").trajectory[1:]
        c, u = straight(model.path, table.times[1:])
        return torch.stack([y / float(c[k]) - tracks.at(float(u[k]))[0] for k, y in enumerate(run)], 1)

    found, J = along(student, noises, tracks)
    torch.testing.assert_close(found, off(), rtol=1e-9, atol=1e-9)
    slopes = []
    for p in student.parameters.values():
        for place in range(len(p)):
            ends, h = [], 1e-5
            for side in (h, -2 * h):
                p.data[place] += side
                ends.append(off())
            p.data[place] += h
            slopes.append((ends[0] - ends[1]) / (2 * h))
    torch.testing.assert_close(J, torch.stack(slopes), rtol=5e-4, atol=5e-5 * float(J.abs().max()))


def test_a_run_that_learned_the_way_is_nearer_on_the_way():
    plain, way = (fit(RING, (64, 2), nfe=4, loss=Distance(nodes=nodes), **SMALL) for nodes in (0.0, 0.2))
    x = noise(32, 2)
    tracks = tracked(RING, Noises(x, {}, Guidance(1.0)), ds.plan(RING, nfe=60))

    def off(table):
        run = ds.solve(RING, noise=x, solver=table, trajectory=True).trajectory[1:-1]
        c, u = straight(RING.path, table.times[1:-1])
        return float(sum((y / float(c[k]) - tracks.at(float(u[k]))[0]).norm(dim=1).mean() for k, y in enumerate(run)))

    assert way.improved
    assert off(way.tableau) < 0.8 * off(plain.tableau)
    assert way.before == plain.before  # of the ends, whatever was learned by


def test_what_a_way_is_asked_of():
    with pytest.raises(ValueError, match="nodes must be 0 with features"):
        Distance(features=torch.tanh, nodes=1.0)
    for options, message in (
        ({"teacher": noise(8, 2)}, "teacher must be a run, with a loss that has nodes"),
        ({"method": "adam"}, "loss must be one without nodes with method='adam'"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(RING, (8, 2), nfe=3, loss=Distance(nodes=1.0), **options)

"""A small operator in space, outside the span of the outputs: what it computes, that it is learned, where it runs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.learning import RING, family_of
from torch.nn.functional import pad

import diffsolve as ds
from diffsolve.common.tensors import neighbours
from diffsolve.models.guidance import Guidance
from diffsolve.tableau.augmented import augmented
from diffsolve.tuning import Distance, fit
from diffsolve.tuning.pilot import grown
from diffsolve.tuning.runs import Noises
from diffsolve.tuning.student import Student, flattened
from diffsolve.tuning.tangents import linearised

BLURS = np.array([0.1, -0.2, 0.3, 0.0, 0.4])


class Picture(torch.nn.Module):
    """Small, smooth, and of all its arguments, for states (B, 1, 4, 5)."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        kernel = torch.randn(1, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        self.kernel = torch.nn.Parameter((0.3 * kernel).to(dtype))

    def forward(self, x, t, shift=0.0):
        mixed = torch.nn.functional.conv2d(x.to(self.kernel.dtype), self.kernel, padding=1)
        return torch.tanh(mixed + shift) * (1 + t.cos().to(mixed))[:, None, None, None]


def noise(n=4, seed=1):
    return torch.randn(n, 1, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


SHIFT = torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None, None, None]
GUIDED = {"cond": {"shift": SHIFT}, "guidance": Guidance(3.0, {"shift": 0.5})}


def blurring(path="condot", predicts="velocity", solver="ab-3(frame='straight')", blurs=BLURS):
    """A model, and a run that blurs and sharpens."""
    model = ds.adapt(Picture(), path, predicts)
    return model, replace(ds.plan(model, solver, nfe=len(blurs)), blurs=blurs)


def student_of(model, nfe=3, also=("blurs",), times=True):
    """A student somewhere."""
    student = Student(model, ds.plan(model, "unipc-3", nfe=nfe), nfe, times, "moved", also)
    generator = torch.Generator().manual_seed(0)
    for p in student.parameters.values():
        p.data += 0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return student


def mean_of(x):
    """The mean of the four neighbours, the edges repeated."""
    wide = pad(x, (1, 1, 1, 1), mode="replicate")
    return (wide[..., 1:-1, :-2] + wide[..., 1:-1, 2:] + wide[..., :-2, 1:-1] + wide[..., 2:, 1:-1]) / 4


def test_the_mean_of_the_neighbours():
    torch.testing.assert_close(neighbours(noise()), mean_of(noise()))
    assert torch.equal(neighbours(torch.full((2, 3, 4, 5), 0.3)), torch.full((2, 3, 4, 5), 0.3))
    n, k = 7, torch.arange(7.0)
    waves = torch.cos(torch.pi * k[:, None] * (k + 0.5) / n)
    torch.testing.assert_close(neighbours(waves[:, None])[:, 0], torch.cos(torch.pi * k / n)[:, None] * waves)


@pytest.mark.parametrize(("path", "predicts"), [("condot", "velocity"), ("edm", "denoised"), ("ddpm", "noise")])
def test_each_velocity_is_blurred_by_its_part(path, predicts):
    """A plain loop over B."""
    model, table = blurring(path, predicts)
    x = noise() * model.path.prior_std()
    levels = np.concatenate([table.calls, table.grid[-1:]])[:, 1:]
    c, B, v, y = levels.sum(1), flattened(table), [], x
    for i in range(table.nfe):
        alpha, sigma = levels[i]
        out = model.net(y, model.network_time(torch.tensor(table.calls[i, 0]).expand(4)))
        own = {  # eps - x_0
            "velocity": lambda y, out, alpha, sigma: -out,
            "denoised": lambda y, out, alpha, sigma: (y - alpha * out) / sigma - out,
            "noise": lambda y, out, alpha, sigma: out - (y - sigma * out) / alpha,
        }[predicts](y, out, alpha, sigma)
        v.append(own + BLURS[i] * (mean_of(own) - own))
        y = c[i + 1] * (x / c[0] + sum(B[i, j] * v[j] for j in range(i + 1)))
    torch.testing.assert_close(ds.sample(model, noise=x, solver=table), y, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", ["dpmpp-2m", "unipc-3", "heun"])
def test_it_is_the_d_of_each_call_that_is_blurred(solver):
    """Of an exact denoiser of constant pictures nothing is changed; of others the blurred D is what the solver sees."""
    model = ds.adapt(Picture(), "edm", "denoised")
    table = ds.plan(model, solver, nfe=5)
    frames = {*table.frame}
    some = replace(table, blurs=BLURS[: table.nfe])
    flat = torch.full((2, 1, 4, 5), 3.0, dtype=torch.float64)
    constant = ds.adapt(lambda x, t: x.mean((2, 3), keepdim=True).expand(x.shape) * 0.5, "edm", "denoised")
    wanted = ds.sample(constant, noise=flat, solver=table)
    torch.testing.assert_close(ds.sample(constant, noise=flat, solver=some), wanted, rtol=1e-12, atol=1e-12)
    if frames == {"denoised"}:
        calls = []

        def net(x, t):
            k = BLURS[len(calls)]
            calls.append(t)
            out = model.net(x, t)
            return out + k * (mean_of(out) - out)

        x = noise() * 80
        found = ds.sample(ds.adapt(net, "edm", "denoised"), noise=x, solver=table)
        torch.testing.assert_close(ds.sample(model, noise=x, solver=some), found)


def test_with_none_it_is_the_tableau_bit_for_bit():
    model, table = blurring()
    none = replace(table, blurs=np.zeros(5))
    plain = ds.plan(model, "ab-3(frame='straight')", nfe=5)
    assert none == plain
    assert "blurs" not in none.to_json()
    assert torch.equal(ds.sample(model, noise=noise(), solver=none), ds.sample(model, noise=noise(), solver=plain))
    start = ds.plan(model, "unipc-3", nfe=4)
    for also in ((), ("blurs",)):
        again = Student(model, start, 4, False, "s", also).tableau()
        np.testing.assert_allclose(again.weights, Student(model, start, 4, False, "s").tableau().weights, atol=0)


def test_a_spectrum_for_which_one_call_is_exact():
    """From pure noise v is the noise, so one step of CondOT ends at -k (m - 1) z: Gaussian data of standard deviations
    k (1 - cos(pi f / n)) in the directions of the DCT-II."""
    n, k = 8, 0.7
    model, std = gaussian(n, lambda f: k * (1 - torch.cos(torch.pi * f / n)))
    table = replace(ds.plan(model, "euler", steps=1, stop=1.0), blurs=[k])
    z = torch.randn(3, 1, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = z @ waves(n).T @ torch.diag(std) @ waves(n)
    torch.testing.assert_close(ds.sample(model, noise=z, solver=table), wanted, rtol=1e-12, atol=1e-12)
    off = ds.sample(model, noise=z, solver=replace(table, blurs=[k + 1e-3]))
    assert float((off - wanted).abs().max()) > 1e-4


def waves(n):
    """(n, n): the DCT-II, orthonormal: row f is a cosine."""
    f = torch.arange(n, dtype=torch.float64)
    rows = torch.cos(torch.pi * f[:, None] * (f + 0.5) / n) * (2 / n) ** 0.5
    rows[0] /= 2**0.5
    return rows


def gaussian(n, std_of):
    """CondOT's exact velocity of Gaussian data (B, 1, n) with these deviations in the directions of the DCT-II."""
    W, std = waves(n), std_of(torch.arange(n, dtype=torch.float64))

    def net(x, t):
        alpha, sigma = t[:, None, None].to(x), 1 - t[:, None, None].to(x)
        along = x @ W.T.to(x)
        var = std.to(x) ** 2
        return along * (alpha * var - sigma) / (alpha**2 * var + sigma**2) @ W.to(x)

    return ds.adapt(net, "condot", "velocity"), std


def two_calls(n=8, k=0.3, b=1.25):
    """The deviations for which z + (b - 1) v_0 - b v_1, v_1 at t = 1/2 and blurred by k, is exact: with s = m - 1,

    b (1 - (1 + k s) (1 - r^2) / (1 + r^2)) = r.
    """

    def std_of(f):
        gain = 1 + k * (torch.cos(torch.pi * f / n) - 1)
        low, high = torch.ones_like(f), torch.full_like(f, 2.0 + 1e-9)
        for _ in range(80):
            r = (low + high) / 2
            more = b * (1 - gain * (1 - r**2) / (1 + r**2)) > r
            low, high = torch.where(more, r, low), torch.where(more, high, r)
        return low

    return gaussian(n, std_of)


def test_what_makes_two_calls_exact_is_found():
    """Weights that are alike for all frequencies cannot be."""
    model, std = two_calls()
    assert float(std.max() / std.min()) > 1.2
    z = torch.randn(96, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = z @ waves(8).T @ torch.diag(std) @ waves(8)
    how = {"noise": z, "teacher": ends, "nfe": 2, "solver": "ab-2(frame='straight')", "grid": "uniform-t", "seed": 0}
    plain = fit(model, **how)
    found = fit(model, also="blurs", times=False, **how)
    assert plain.after.value > 1e-3
    assert found.after.value < 1e-6
    np.testing.assert_allclose(found.tableau.blurs, [0, 0.3], atol=1e-5)
    np.testing.assert_allclose(flattened(found.tableau)[1], [0.25, -1.25], atol=1e-5)
    assert found.tableau.solver == "tuned(ab-2(frame='straight'), nfe=2, also=blurs)"


@pytest.mark.parametrize(("path", "predicts"), [("condot", "velocity"), ("edm", "edm"), ("ddpm", "noise")])
def test_the_derivative_by_it(path, predicts):
    """Carried along with the run, and by the graph of the student, against differences of the executor's ends."""
    model = ds.adapt(Picture(), path, predicts)
    student = student_of(model, also=("told", "guides", "blurs"))
    noises = Noises(noise() * model.path.prior_std(), GUIDED["cond"], GUIDED["guidance"])
    x, J = linearised(student, noises)
    wanted = ds.sample(model, noise=noises.x, solver=student.tableau(), **GUIDED)
    torch.testing.assert_close(x, wanted, rtol=1e-9, atol=1e-9)
    ended = student(noises.x, noises.cond, noises.guidance)
    torch.testing.assert_close(ended, wanted, rtol=1e-9, atol=1e-9)
    (slope,) = torch.autograd.grad(ended.sum(), [student.blurs])
    for i in range(student.calls):
        kept, ends = float(student.blurs.data[i]), []
        for side in (1e-5, -1e-5):
            student.blurs.data[i] = kept + side
            ends.append(ds.sample(model, noise=noises.x, solver=student.tableau(), **GUIDED))
        student.blurs.data[i] = kept
        by = (ends[0] - ends[1]) / 2e-5
        torch.testing.assert_close(J[i - student.calls], by, rtol=2e-4, atol=2e-5 * float(by.abs().max()))
        assert float(slope[i]) == pytest.approx(float(by.sum()), rel=1e-4, abs=1e-6 * float(by.abs().max()))


def test_wherever_a_run_goes_it_goes_too():
    model, table = blurring()
    x = noise()
    wanted = ds.sample(model, noise=x, solver=table, **GUIDED)
    plain = ds.sample(model, noise=x, solver=replace(table, blurs=0 * BLURS), **GUIDED)
    assert float((wanted - plain).abs().max()) > 0.01
    for how in (
        {"parallel": ds.Picard(window=3, tol=0)},
        {"parallel": ds.Parareal(tol=0)},
        {"parallel": ds.Independent()},
        {"gradient": "direct"},
        {"gradient": "checkpoint"},
    ):
        torch.testing.assert_close(ds.sample(model, noise=x, solver=table, **how, **GUIDED), wanted)
    stepper = ds.Stepper(model, max_history=5)
    guidance = Guidance(3.0, {"shift": torch.full((1, 1, 1), 0.5, dtype=torch.float64)})
    cond = [{"shift": SHIFT[i]} for i in (0, 3)]
    tickets = [
        stepper.submit(noise=x[0], solver=table, cond=cond[0], guidance=guidance),
        stepper.submit(noise=x[1], solver="unipc-3", nfe=4, cond=cond[0]),
        stepper.submit(noise=x[3], solver=table, cond=cond[1], guidance=guidance),
    ]
    stepper.run()
    for i, ticket in zip((0, 3), tickets[::2], strict=True):
        torch.testing.assert_close(stepper.result(ticket).x, wanted[i])
    first = ds.solve(model, noise=x, solver=table, max_calls=2, **GUIDED)
    assert torch.equal(ds.solve(model, solver=table, state=first.state, **GUIDED).x, wanted)
    with pytest.raises(ValueError, match="state must be of the run that continues it"):
        ds.solve(model, solver=replace(table, blurs=2 * BLURS), state=first.state, **GUIDED)
    every = ds.skip(table, table.nfe)
    torch.testing.assert_close(ds.sample(model, noise=x, solver=every, **GUIDED), wanted)
    looked = ds.sample(model, noise=x, solver=table, hook=lambda step: None, **GUIDED)  # D in the place of the output
    torch.testing.assert_close(looked, wanted, rtol=1e-6, atol=1e-6)
    ex = ds.begin(model, noise=x, solver=table)
    while not ex.done:
        ex.advance(model.net(*ex.query()))
    assert torch.equal(ex.y, ds.sample(model, noise=x, solver=table))


def test_in_hosts(df):
    from diffsolve.integrations.diffusers import Scheduler
    from diffsolve.integrations.k_diffusion import sampler

    model, table = blurring("rectified")
    scheduler = Scheduler(df.FlowMatchEulerDiscreteScheduler(), family_of(table))
    x = start = noise()
    scheduler.set_timesteps(5)
    for t in scheduler.timesteps:
        x = scheduler.step(model.net(x, (t / 1000).expand(4)), t, x).prev_sample
    torch.testing.assert_close(x, ds.sample(model, noise=start, solver=table), rtol=1e-5, atol=1e-5)
    model, table = blurring("edm", "denoised")
    sigmas = torch.from_numpy(table.times.copy()).float()
    found = sampler(family_of(table), seed=0)(model.net, 80 * start, sigmas, disable=True)
    torch.testing.assert_close(found, ds.sample(model, noise=80 * start, solver=table), rtol=1e-5, atol=1e-5)


def test_a_file_has_it_and_it_runs_at_another_dtype(tmp_path):
    model, table = blurring()
    table.save(tmp_path / "t.json")
    again = ds.Tableau.load(tmp_path / "t.json")
    assert again == table
    assert again.unusual.keys() == {"blurs"}
    half = ds.adapt(Picture(torch.bfloat16), "condot", "velocity")
    for dtype in (torch.float32, torch.float64):
        found = ds.sample(half, noise=noise().to(dtype), solver=again)
        assert found.dtype == dtype
        wanted = ds.sample(model, noise=noise(), solver=table)
        assert float((found - wanted).norm() / wanted.norm()) < 0.05
    one = ds.sample(model, noise=noise()[:1], solver=table)
    torch.testing.assert_close(one, ds.sample(model, noise=noise(), solver=table)[:1])


def test_a_learned_run_is_where_another_learning_begins():
    model = ds.adapt(Picture(), "condot", "velocity")
    table = student_of(model).tableau()
    again = Student(model, table, 3, True, "moved").tableau()
    np.testing.assert_allclose(again.blurs, table.blurs)
    more = grown(model, table, 4).tableau
    assert sorted(more.blurs) == sorted([*table.blurs, 0.0])
    torch.testing.assert_close(
        ds.sample(model, noise=noise(), solver=more), ds.sample(model, noise=noise(), solver=table)
    )


def test_by_adam_and_along_the_way_too():
    model = ds.adapt(Picture(), "condot", "velocity")
    how = {"noise": noise(16), "nfe": 2, "teacher": 20, "iterations": 3, "seed": 0, "solver": "unipc-3"}
    for more in ({"method": "adam", "lr": 0.01}, {"loss": Distance(nodes=0.2)}):
        found = fit(model, also="blurs", **how, **more)
        assert found.improved
        assert found.tableau.blurs.any()


def test_where_it_cannot_be_it_is_refused():
    model, table = blurring()
    with pytest.raises(ValueError, match="guides evenly and blurs nothing"):
        augmented(table)
    with pytest.raises(ValueError, match="blurs nothing, which has no directions here"):
        table.expected_error(predicts="velocity")
    points = ds.adapt(lambda x, t: x, "condot", "velocity")
    with pytest.raises(ValueError, match=r"the shape of the state must be \(B, C, ...\), with axes of space"):
        ds.sample(points, (4, 2), solver=table, seed=0)
    with pytest.raises(ValueError, match=r"shape must be \(n, C, ...\), with axes of space to blur along"):
        fit(RING, (8, 2), nfe=3, also="blurs")
    edm, run = blurring("edm", "denoised", "dpmpp-2m")
    with pytest.raises(ValueError, match="one that blurs its straight d"):
        ds.skip(run, 3)
    with pytest.raises(ValueError, match="one that blurs straight velocities"):
        Student(edm, run, 5, False, "s")
    rescaled = Guidance(2.0, {"shift": torch.zeros(1, 1, 1)}, rescale=0.5)
    with pytest.raises(ValueError, match="one that blurs nothing, where guidance is rescaled"):
        ds.Stepper(model, max_history=5).submit(noise=noise()[0], solver=table, guidance=rescaled)
    with pytest.raises(ValueError, match="blurs must be of finite numbers"):
        replace(table, blurs=np.array([np.nan, 0, 0, 0, 0]))

"""Networks told two times: their averages lead exactly where the flow does, in any frame, and at s = t they predict."""

import numpy as np
import pytest
import torch
from support.flowmaps import flow, flow_map

import diffsolve as ds
from diffsolve import paths
from diffsolve.tableau import Draft, Tableau
from diffsolve.tableau.frames import FRAMES, PREDICTIONS, STRAIGHT


def run_of(path, shares, frame="denoised"):
    """A tableau of one exact step of a frame for each stretch, told where it ends."""
    draft = Draft(path, path.nodes(path.t_noise + np.array(shares) * (path.t_last - path.t_noise)))
    for i in range(draft.steps):
        ratio, gain = FRAMES[frame].step(draft.grid[i], draft.grid[i + 1])
        draft.call(draft.grid[i], frame, y={"y": ratio, i: gain}, node=i + 1, to=draft.grid[i + 1])
    return draft.build("jumps", 1)


def start(rows=4, dtype=torch.float64):
    return torch.randn(rows, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.product(
    {"predicts": list(PREDICTIONS), "jumps": list(FRAMES), "path": ["condot", "vp", "edm", "ddpm", "rectified"]}, each=2
)
def test_a_run_of_jumps_is_the_flow_in_any_frame(path, predicts, jumps):
    model = flow_map(path, predicts, jumps)
    for frame in ("denoised", "trig"):
        tableau = run_of(model.path, (0.1, 0.4, 0.9), frame)
        first, last = map(float, tableau.times[[0, -1]])
        x, exact = start(), flow(model.path, start(), first, last)
        scale = exact.abs().max()
        for got in (ds.sample(model, noise=x, solver=tableau, seed=0), model.jump(x, first, last)):
            assert (got - exact).abs().max() < 1e-9 * scale
        back = model.jump(exact, last, first)
        assert (back - x).abs().max() < 1e-8 * scale


@pytest.mark.parametrize("jumps", FRAMES)
def test_where_both_times_agree_the_network_predicts_as_one_told_once(jumps):
    model = flow_map("vp", "velocity", jumps)
    once = ds.adapt(lambda x, t: model(x, t), "vp", "velocity")
    x = start()
    assert torch.equal(model.jump(x, 0.4, 0.4), x)
    assert torch.allclose(model.predict("denoised", x, 0.4), once.denoised(x, 0.4), rtol=1e-12)
    runs = [ds.sample(m, noise=x, solver="heun", steps=3, start=0.8, stop=0.2) for m in (model, once)]
    assert torch.equal(*runs)


def test_averages_are_averages():
    """Of what is the frame's own d, up to a factor of the time, the network's output is the mean over the stretch."""
    pairs = (("condot", "velocity", "native"), ("edm", "denoised", "denoised"), ("edm", "noise", "noise"))
    for path, predicts, jumps in pairs:
        model = flow_map(path, predicts, jumps)
        v = FRAMES[jumps].v
        t, s = (paths.named(path).t_noise + w * (model.path.t_last - model.path.t_noise) for w in (0.3, 0.8))
        ends = [float(v(model.path.nodes(np.array(end)))) for end in (t, s)]
        nodes, weights = np.polynomial.legendre.leggauss(40)
        at = torch.from_numpy(FRAMES[jumps].time(model.path, ends[0] + (nodes + 1) / 2 * (ends[1] - ends[0])))
        x = start(1)
        along = torch.cat([model(flow(model.path, x, t, m), m) for m in at])
        mean = (torch.from_numpy(weights)[:, None] / 2 * along).sum(0)
        assert torch.allclose(mean, model(x, t, s)[0], rtol=1e-9)


def test_published_students_are_points():
    x, path = start(), paths.VP()
    t, s = 0.7, 0.2
    p, q = path.at(t), path.at(s)
    jump = {name: flow_map(path, name, "straight").jump for name in ("denoised", "v")}
    out = {name: flow_map(path, name, "straight")(x, t, s) for name in jump}
    # CTM, 2310.02279, eq. 9, in rho: G = (s / t) x + (1 - s / t) g.
    rho_t, rho_s = p.sigma / p.alpha, q.sigma / q.alpha
    ctm = q.alpha * (rho_s / rho_t * x / p.alpha + (1 - rho_s / rho_t) * out["denoised"])
    assert torch.allclose(jump["denoised"](x, t, s), ctm, rtol=1e-12)
    # sCM, 2410.11081, eq. 4: cos(t - s) x - sin(t - s) F in the angle.
    turn = torch.atan2(p.sigma, p.alpha) - torch.atan2(q.sigma, q.alpha)
    assert torch.allclose(jump["v"](x, t, s), torch.cos(turn) * x - torch.sin(turn) * out["v"], rtol=1e-12)
    # MeanFlow, 2505.13447, eq. 12, on a straight path: z_s = z_t + (s - t) u.
    mean = flow_map("rectified", "velocity", "straight")
    assert torch.allclose(mean.jump(x, t, s), x + (s - t) * mean(x, t, s), rtol=1e-12)
    # A consistency network of one time: its function of x at s = data, and the identity there.
    once = ds.adapt(lambda x, t: 0.3 * x, path, "v")
    assert torch.allclose(once.jump(x, t, 0.0), p.alpha * x - p.sigma * 0.3 * x, rtol=1e-12)
    assert torch.equal(once.jump(x, 0.0, 0.0), x)


def test_the_network_is_told_both_times_on_its_clock():
    seen = []

    def net(x, t, s):
        seen.append((t, s))
        return 0 * x

    path = paths.EDM()
    model = ds.adapt(net, path, "denoised", clock="c_noise", jumps="denoised")
    draft = Draft(path, path.nodes([80.0, 1.0, 0.0]))
    for i in range(2):
        ratio, gain = FRAMES["denoised"].step(draft.grid[i], draft.grid[i + 1])
        draft.call(draft.grid[i], "denoised", y={"y": ratio, i: gain}, node=i + 1, to=draft.grid[i + 1])
    tableau = draft.build("jumps", 1)
    executor = ds.begin(model, (2, 3), solver=tableau, seed=0)
    (x, t, s), _ = executor.query(), executor.advance(torch.zeros(2, 3))
    assert x.shape == (2, 3)
    assert t.shape == s.shape == (2,)
    assert torch.allclose(torch.stack([t, s]), torch.tensor([[80.0], [1.0]]).log() / 4)
    ds.sample(model, (2, 3), solver=tableau, seed=0)
    # log sigma is infinite at the data: the time is told at which the network may be called last.
    assert seen[-1][1][0] == pytest.approx(np.log(path.t_last) / 4)
    assert all(told.dtype == torch.float32 for told in seen[-1])


@pytest.mark.parametrize("driver", [{"parallel": ds.Picard(tol=1e-12)}, {"gradient": "direct"}, {"trajectory": True}])
@pytest.mark.parametrize("jumps", ["straight", "trig"])
def test_every_way_of_running_tells_both_times(driver, jumps):
    model = flow_map("condot", "velocity", jumps)
    tableau = run_of(model.path, (0.0, 0.3, 0.6, 1.0))
    got = ds.solve(model, noise=start(), solver=tableau, seed=0, **driver).x
    assert torch.allclose(got, flow(model.path, start(), 0.0, 1.0), rtol=1e-9)


def test_log_densities_are_of_networks_told_one_time():
    model = flow_map("condot", "velocity", "straight")
    with pytest.raises(ValueError, match="one that tells the network one time here"):
        ds.sample_with_log_prob(model, noise=start(), solver=run_of(model.path, (0.0, 0.5, 0.9)), seed=0)


def test_a_tableau_keeps_its_second_times(tmp_path):
    tableau = run_of(paths.VE(), (0.0, 0.5, 1.0))
    tableau.save(tmp_path / "jumps.json")
    assert Tableau.load(tmp_path / "jumps.json") == tableau
    assert tableau.jumps.all()
    plain = ds.plan("vp", "heun", steps=2)
    assert not plain.jumps.any()
    assert '"to"' not in plain.to_json()
    other = run_of(paths.VE(), (0.0, 0.5, 1.0), "straight")
    assert other.frame != tableau.frame


def test_any_rank_and_dtype():
    for shape, dtype in (((2,), torch.float32), ((2, 3, 4, 4), torch.bfloat16), ((2, 5, 6), torch.float64)):
        model = ds.adapt(lambda x, t, s: x * 0.5, "condot", "velocity", jumps="straight", dtype=dtype)
        x = ds.sample(model, shape, solver=run_of(model.path, (0.0, 0.5, 1.0)), seed=0)
        noise = ds.Key(0).normal(shape, dtype=torch.float64)
        assert x.shape == shape
        assert torch.allclose(x.double(), 1.25**2 * noise, rtol=2e-2 if dtype == torch.bfloat16 else 1e-6)


def test_refused():
    with pytest.raises(ValueError, match="jumps must be 'denoised', .*, got 'straigth'"):
        ds.adapt(lambda x, t, s: x, "condot", "velocity", jumps="straigth")
    with pytest.raises(TypeError, match="s must be left out for a network told one time"):
        ds.adapt(lambda x, t: x, "condot", "velocity")(start(), 0.1, 0.2)
    with pytest.raises(ValueError, match="does not determine"):
        ds.adapt(lambda x, t, s: x, "condot", "noise", jumps="noise").jump(start(), 0.0, 1.0)
    assert set(FRAMES) >= STRAIGHT

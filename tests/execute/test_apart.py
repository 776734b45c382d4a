"""CFG++ on every solver: by hand for DDIM and DPM-Solver++, and that it does nothing where nothing guides."""

import math

import pytest
import torch

import diffsolve as ds

X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
W = 1.8
KINDS = {"edm": "denoised", "vp": "noise", "cosine": "v", "condot": "velocity"}


def model_on(path):
    exact = ds.reference.mixture_model(ds.reference.mixture.ring(), path, KINDS[path]).net

    def net(x, t, shift=0.0):
        return exact(x, t) + shift * x.sin()

    return ds.adapt(net, path, KINDS[path])


def run(model, solver, guidance, steps=6, **options):
    start = {"noise": X * model.path.prior_std(), "cond": {"shift": 0.3}, "seed": 0}
    return ds.solve(model, solver=solver, steps=steps, guidance=guidance, **start, **options)


def levels(run):
    return [(float(t), float(a), float(s)) for t, a, s in zip(run.times, *run.tableau.grid.T[1:], strict=True)]


def pair(model, x, t):
    """The guided and the unconditional denoised."""
    u = model.denoised(x, t)
    return u + W * (model.denoised(x, t, shift=0.3) - u), u


@pytest.mark.parametrize("path", ["edm", "vp"])
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddim_has_guided_data_and_unconditional_noise(path, eta):
    model = model_on(path)
    found = run(model, f"ddim(eta={eta})", ds.Guidance(W, plus=True))
    x = X * model.path.prior_std()
    nodes = levels(found)
    for i, ((s, alpha_s, sigma_s), (_, alpha_t, sigma_t)) in enumerate(zip(nodes[:-1], nodes[1:], strict=True)):
        guided, plain = pair(model, x, s)
        noise = (x - alpha_s * plain) / sigma_s
        up = eta * sigma_t / sigma_s * math.sqrt(max(sigma_s**2 - (alpha_s * sigma_t / alpha_t) ** 2, 0.0))
        z = found.executor.noise(i + 1) if up else 0.0
        x = alpha_t * guided + math.sqrt(sigma_t**2 - up**2) * noise + up * z
    torch.testing.assert_close(found.x, x, rtol=1e-7, atol=1e-7)


def test_a_step_of_two_calls_begins_at_the_guided_data_and_the_unconditional_noise():
    """DPM-Solver++(2S): its own two calls, from alpha D_g + sigma eps_u, with guided denoised at both."""
    model = model_on("edm")
    found = run(model, "dpmpp-2s", ds.Guidance(W, plus=True))
    x = X * model.path.prior_std()
    nodes = levels(found)
    for (_, _, sigma_s), (_, _, sigma_t) in zip(nodes[:-1], nodes[1:], strict=True):
        guided, plain = pair(model, x, sigma_s)
        if sigma_t == 0:
            x = guided
            break
        x = x + guided - plain
        middle = math.sqrt(sigma_s * sigma_t)
        y = middle / sigma_s * x + (1 - middle / sigma_s) * guided
        x = sigma_t / sigma_s * x + (1 - sigma_t / sigma_s) * pair(model, y, middle)[0]
    torch.testing.assert_close(found.x, x, rtol=1e-7, atol=1e-7)


SOLVERS = sorted(set(ds.solvers.names()) - {"flow-map", "lcm", "tcd", "scm"})


@pytest.mark.parametrize("path", ["edm", "condot"])
def test_every_solver_has_it(path):
    """Finite, another run than without; and with nothing to guide the same run, to rounding."""
    model = model_on(path)
    for solver in SOLVERS:
        plus, plain = (run(model, solver, ds.Guidance(W, plus=on)).x for on in (True, False))
        assert plus.isfinite().all(), solver
        assert not torch.equal(plus, plain), solver
        same = ds.Guidance(W, uncond={"shift": 0.3}, plus=True)
        torch.testing.assert_close(
            run(model, solver, same).x, run(model, solver, 1.0).x, rtol=1e-6, atol=1e-6, msg=solver
        )


@pytest.mark.parametrize("solver", ["dpmpp-3m", "unipc-3", "heun", "rk4", "res-2s", "deis-2", "ab-3", "abm-3"])
def test_all_solvers_have_one_limit(solver):
    """As steps shrink the shift of a step does not: what matters is the sum of the shifts, the same for all solvers
    that begin their steps at the same nodes."""
    model = model_on("edm")
    reference = run(model, "ddim", ds.Guidance(1.2, plus=True), steps=256).x
    x = run(model, solver, ds.Guidance(1.2, plus=True), steps=256).x
    assert (x - reference).abs().max() < 0.1


def test_a_run_in_two_parts_and_a_callback():
    model, guidance, seen = model_on("edm"), ds.Guidance(W, plus=True), []
    whole = run(model, "unipc-3", guidance, callback=seen.append)
    part = run(model, "unipc-3", guidance, max_calls=3)
    rest = ds.solve(model, solver=part.tableau, state=part.state, cond={"shift": 0.3}, guidance=guidance)
    assert torch.equal(rest.x, whole.x)
    guided, _ = pair(model, X * model.path.prior_std(), float(whole.times[0]))
    torch.testing.assert_close(seen[0].denoised, guided)
    with pytest.raises(ValueError, match=r"hook=.* cannot be given with guidance with plus=True"):
        run(model, "ddim", guidance, hook=lambda step: None)

"""CFG++ on every solver: by hand for DDIM and DPM-Solver++, and that it does nothing where nothing guides."""

import math

import pytest
import torch
from support.solvers import POINTS

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


@pytest.mark.parametrize("solver", ["dpmpp-2s", "dpmpp-2s-ancestral"])
def test_a_step_of_two_calls_begins_at_the_guided_data_and_the_unconditional_noise(solver):
    """DPM-Solver++(2S): its own two calls, from alpha D_g + sigma eps_u, with guided denoised at both.

    The sampler dpmpp_2s_ancestral_cfg_pp of ComfyUI has the D_u of the second call in the place of the first."""
    model = model_on("edm")
    found = run(model, solver, ds.Guidance(W, plus=True))
    x, call = X * model.path.prior_std(), 0
    nodes = levels(found)
    for (_, _, sigma_s), (_, _, sigma_t) in zip(nodes[:-1], nodes[1:], strict=True):
        guided, plain = pair(model, x, sigma_s)
        if sigma_t == 0:
            x = guided
            break
        call += 2
        up = sigma_t * math.sqrt(1 - (sigma_t / sigma_s) ** 2) if "ancestral" in solver else 0.0
        down = math.sqrt(sigma_t**2 - up**2)
        x = x + guided - plain
        middle = math.sqrt(sigma_s * down)
        y = middle / sigma_s * x + (1 - middle / sigma_s) * guided
        x = down / sigma_s * x + (1 - down / sigma_s) * pair(model, y, middle)[0]
        x = x + up * found.executor.noise(call) if up else x
    torch.testing.assert_close(found.x, x, rtol=1e-7, atol=1e-7)


def test_heun_on_the_noise_has_unconditional_noise_at_both_calls():
    model = model_on("edm")
    found = run(model, "heun(frame='noise')", ds.Guidance(W, plus=True))
    x = X * model.path.prior_std()
    nodes = levels(found)
    for (_, _, sigma_s), (_, _, sigma_t) in zip(nodes[:-1], nodes[1:], strict=True):
        guided, plain = pair(model, x, sigma_s)
        noise, x = (x - plain) / sigma_s, x + guided - plain
        step = sigma_t - sigma_s
        if sigma_t > 0:
            y = x + step * noise
            noise = (noise + (y - pair(model, y, sigma_t)[1]) / sigma_t) / 2
        x = x + step * noise
    torch.testing.assert_close(found.x, x, rtol=1e-7, atol=1e-7)


def test_dpmpp_2m_extrapolates_the_guided_denoised():
    """Where dpmpp_2m_cfg_pp of ComfyUI leaves an unconditional D of the call before; its first and last steps agree."""
    model = model_on("edm")
    found = run(model, "dpmpp-2m", ds.Guidance(W, plus=True))
    x, before = X * model.path.prior_std(), None
    nodes = levels(found)
    for i, ((_, _, sigma_s), (_, _, sigma_t)) in enumerate(zip(nodes[:-1], nodes[1:], strict=True)):
        guided, plain = pair(model, x, sigma_s)
        used = guided
        if before is not None and sigma_t > 0:
            ratio = math.log(nodes[i - 1][2] / sigma_s) / math.log(sigma_s / sigma_t)
            used = guided + (guided - before) / (2 * ratio)
        fall, before = sigma_t / sigma_s, guided
        x = fall * (x + guided - plain) + (1 - fall) * used
    torch.testing.assert_close(found.x, x, rtol=1e-7, atol=1e-7)


DATA = [
    "ddim",
    "dpmpp-2m",
    "dpmpp-3m",
    "dpmpp-2s",
    "dpmpp-3s",
    "unip-3",
    "unipc-2",
    "unipc-3",
    "unipc-6",
    "res-2m",
    "res-3m",
]
DATA += ["res-2s", "res-3s", "res-5s", "etdrk-4s"]  # all that extrapolate the denoised, of any order


@pytest.mark.parametrize("path", ["edm", "vp"])
def test_of_constant_denoised_all_solvers_have_one_cfg_plus_plus(path):
    """Whatever their order, calls of a step and corrector: x_t = alpha_t D_g + sigma_t eps_u."""

    def net(x, t, shift=0.0):
        return torch.full_like(x, 0.7) + shift

    model, guided, plain = ds.adapt(net, path, "denoised"), 0.7 + W * 0.3, 0.7
    for solver in DATA:
        found = run(model, solver, ds.Guidance(W, plus=True), stop=0.3)
        nodes, x = levels(found), X * model.path.prior_std()
        for (_, alpha_s, sigma_s), (_, alpha_t, sigma_t) in zip(nodes[:-1], nodes[1:], strict=True):
            x = alpha_t * guided + sigma_t / sigma_s * (x - alpha_s * plain)
        torch.testing.assert_close(
            found.x, x, rtol=1e-7, atol=1e-7, msg=lambda text, solver=solver: f"{solver}: {text}"
        )


SOLVERS = sorted(set(ds.solvers.names()) - {"flow-map", "scm"})  # which need a network that is told two times


@pytest.mark.product(
    {"solver": SOLVERS, "path": ["edm", "condot"]}, some={"solver": [name for name in SOLVERS if name not in POINTS]}
)
def test_every_solver_has_it(solver, path):
    """Finite, another run than without; and with nothing to guide the same run, to rounding."""
    model = model_on(path)
    plus, plain = (run(model, solver, ds.Guidance(W, plus=on)).x for on in (True, False))
    assert plus.isfinite().all()
    # A step that makes new noise of the denoised alone has no other noise to keep.
    assert solver in ("consistency", "lcm") or not torch.equal(plus, plain)
    one, other = (run(model, solver, ds.Guidance(W, uncond={"shift": 0.3}, plus=on)).x for on in (True, False))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


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

"""The sampler names of ComfyUI: each has the numbers of its recursion, on a flow's sigmas as on others.

The samplers themselves are held to ComfyUI's own functions in test_comfyui.py.
"""

import pytest
import torch
from support import comfy

import diffsolve as ds
from diffsolve.integrations.k_diffusion import sampler
from diffsolve.noise import Stream

SHAPE = (2, 3, 4)
KEY = ds.Key(0)
SIGMAS = {False: [14.0, 6.0, 2.5, 1.1, 0.4, 0.1, 0.0], True: [1.0, 0.9, 0.75, 0.5, 0.3, 0.1, 0.0]}


def z(row):
    return KEY.normal(SHAPE, row=row + 1, stream=Stream.ROW, dtype=torch.float64)


def run(name, host, sigmas, **options):
    x = sigmas[0] * KEY.normal(SHAPE, dtype=torch.float64)
    return x, sampler(name, seed=0, **options)(host, x, torch.tensor(sigmas, dtype=torch.float64), disable=True)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("name", list(comfy.RECURSIONS))
def test_it_is_its_recursion(name, flow):
    host = comfy.Host(flow)
    for sigmas in (SIGMAS[flow], [*SIGMAS[flow][:3], 0.0], [SIGMAS[flow][0], 0.0]):
        x, mine = run(name, host, sigmas)
        torch.testing.assert_close(mine, comfy.RECURSIONS[name](host, x, sigmas, z), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", list(comfy.OF_FLOWS))
def test_it_is_another_on_flows(name):
    host = comfy.Host(True)
    x, mine = run(name, host, SIGMAS[True])
    torch.testing.assert_close(mine, comfy.OF_FLOWS[name](host, x, SIGMAS[True], z), rtol=1e-9, atol=1e-9)


@pytest.fixture
def double():
    """k-diffusion's times are of the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("name", ["heun", "dpm_2", "lms", "dpmpp_2m", "euler", "dpm_adaptive", "dpm_fast"])
def test_it_is_that_of_k_diffusion(kd, name, flow, double):
    """Which are in x and sigma, so that a flow's sigmas do as they are."""
    host, sigmas = comfy.Host(flow), torch.tensor(SIGMAS[flow], dtype=torch.float64)
    sigmas = torch.cat([sigmas[:-1], torch.linspace(0.07, 0, 3, dtype=torch.float64)])
    for count in (2, 4, 5, 6, 7):
        at = torch.cat([sigmas[:count], sigmas[-1:]])
        x, mine = run(name, host, at.tolist())
        function = getattr(kd, f"sample_{name}")
        if name.startswith("dpm_") and name != "dpm_2":
            ends = float(at[-2]), float(at[0])
            rest = (count,) if name == "dpm_fast" else ()
            theirs = function(host, x, *ends, *rest, disable=True)
        else:
            theirs = function(host, x, at[:-1] if name == "lms" else at, disable=True)
            if name == "lms":  # which there has no step to zero
                x, mine = run(name, host, at[:-1].tolist())
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_dpm_adaptive_stops_where_the_network_does():
    with pytest.raises(ValueError, match="the error of a step must be finite, at sigma=14, got nan"):
        sampler("dpm_adaptive")(
            lambda x, s: x * float("nan"), torch.ones(1, 2), torch.tensor([14.0, 1.0]), disable=True
        )
    with pytest.raises(ValueError, match="plus must be False with dpm_adaptive"):
        sampler("dpm_adaptive", plus=True)


def test_noise_is_added_on_the_way_to_the_data_only():
    for name in ("res_multistep_ancestral", "euler_ancestral", "res_multistep_ancestral_cfg_pp"):
        with pytest.raises(ValueError, match="noise is added on the way|only eta=0 runs from the data"):
            run(name, comfy.Host(True), SIGMAS[True][-2::-1])
    for name in ("heun", "gradient_estimation", "res_multistep", "dpmpp_2m_cfg_pp"):
        assert run(name, comfy.Host(True), SIGMAS[True][-2::-1])[1].isfinite().all()
    assert run("sa_solver", comfy.Host(True), [1.3, 1.1, 0.7, 0.4, 0.0])[1].isfinite().all()


def test_a_callback_sees_the_steps():
    for name in ("dpm_fast", "dpm_adaptive", "dpmpp_2m_cfg_pp", "sa_solver_pece"):
        seen = []
        host, sigmas = comfy.Host(False), torch.tensor(SIGMAS[False])
        sampler(name, seed=0)(host, 14 * torch.ones(1, 2), sigmas, callback=seen.append, disable=True)
        assert [about["i"] for about in seen][:3] == [0, 1, 2]
        assert float(seen[0]["sigma"]) == 14
        assert all(about["denoised"].shape == (1, 2) for about in seen)
    assert [float(about["sigma"]) for about in seen] == pytest.approx(SIGMAS[False][:-1])


@pytest.mark.parametrize("solver", ["dpmpp-2m", "unipc-3", "heun(frame='straight')", "rk4", "ddim(eta=0.5)"])
@pytest.mark.parametrize("flow", [False, True])
def test_cfg_plus_plus_of_any_solver(solver, flow):
    """`plus=True` is `ds.Guidance(plus=True)`, of the two outputs that ComfyUI hands over."""
    host = comfy.Host(flow)
    x, mine = run(solver, host, SIGMAS[flow], plus=True)
    path = "rectified" if flow else ds.paths.EDM(0.1, 14.0)
    both = lambda x, t, guided: host.pair(x, float(t[0]))[0 if guided else 1]  # noqa: E731
    model = ds.adapt(both, path, "denoised")
    guidance = ds.Guidance(1.0 + 1e-12, plus=True, uncond={"guided": False})
    options = {"grid": SIGMAS[flow], "seed": 0, "cond": {"guided": True}, "guidance": guidance}
    torch.testing.assert_close(mine, ds.sample(model, noise=x, solver=solver, **options))
    _, plain = run(solver, host, SIGMAS[flow])
    assert not torch.allclose(plain, mine)


def test_cfg_plus_plus_needs_a_host_that_tells():
    with pytest.raises(ValueError, match="model must be one of ComfyUI for CFG\\+\\+"):
        sampler("euler_cfg_pp")(lambda x, s, **_: x, torch.ones(1, 2), torch.tensor([2.0, 1.0]), disable=True)
    with pytest.raises(ValueError, match="model must be one of ComfyUI, which knows percent_to_sigma, got 'function'"):
        sampler("sa_solver")(lambda x, s, **_: x, torch.ones(1, 2), torch.tensor([2.0, 1.0]), disable=True)


def test_a_table_is_run_on_its_own_sigmas():
    host = comfy.Host(False)
    model = ds.adapt(lambda x, t: host.D(x, float(t[0])), ds.paths.EDM(0.1, 14.0), "denoised")
    table = ds.plan(model, "dpmpp-2m", grid=SIGMAS[False])
    x, mine = run(table, host, SIGMAS[False])
    torch.testing.assert_close(mine, ds.sample(model, noise=x, solver=table))
    with pytest.raises(ValueError, match="sigmas must be those of the table"):
        run(table, host, SIGMAS[False][1:])
    with pytest.raises(ValueError, match="the table must be for the path 'rectified' of a flow"):
        run(ds.plan("vp", "dpmpp-2m", steps=3), host, SIGMAS[False])

"""Other libraries' names: what they resolve to, that those libraries have them, and that the methods are the same."""

import inspect

import numpy as np
import pytest
import torch
from support import peers

import diffsolve as ds
from diffsolve import grids, paths
from diffsolve.reference import mixture_model
from diffsolve.solvers.aliases import GRIDS, REFUSED, REFUSED_GRIDS

ALIASES = ds.solvers.aliases()


def test_every_alias_resolves():
    for alias, (solver, grid) in ALIASES.items():
        found = ds.solvers.resolve(alias)
        assert found == (ds.solvers.named(solver), grid), alias
        assert ds.solvers.named(alias) == found[0]
        if "(" not in alias:
            assert ds.solvers.resolve(f"  {alias.upper().replace(' ', '   ')} ") == found
        if grid is not None:
            grids.named(grid)


def test_our_own_names_come_first():
    for alias in [*ALIASES, *REFUSED]:
        assert alias.lower() not in ds.solvers.names()
    for alias in [*GRIDS, *REFUSED_GRIDS]:
        assert alias.lower() not in grids.names()
    assert not {a.lower() for a in REFUSED} & {a.lower() for a in ALIASES}
    assert len({a.lower() for a in ALIASES}) == len(ALIASES)
    assert "DPM++ 2M Karras" in ALIASES
    assert not set(ALIASES) & set(ds.solvers.names())


@pytest.mark.parametrize(
    ("alias", "solver", "grid"),
    [
        ("DPM++ 2M Karras", "dpmpp-2m", "karras"),
        ("LMS Karras", "ab-4(frame='noise')", "karras"),
        ("Euler a", "ddim(eta=1.0)", None),
        ("DPM2", "dpm-2s", None),
        ("sample_dpmpp_2m", "dpmpp-2m", None),
        ("uni_pc", "unipc-3(bh='bh1')", None),
        ("res_multistep", "res-2m", None),
        ("lms-3(lower_final=True)", "ab-3(frame='noise', lower_final=True)", None),
        ("ipndm_v(frame='trig')", "ab-4(frame='trig')", None),
        ("DPMSolverMultistepScheduler", "dpmpp-2m(lower_final=15)", None),
        (
            "dpmsolvermultistepscheduler( use_karras_sigmas = True, solver_order=3 )",
            "dpmpp-3m(lower_final=15)",
            "karras",
        ),
        ("UniPCMultistepScheduler(solver_order=3)", "unipc-3", None),
        ("PNDMScheduler(skip_prk_steps=True)", "plms", None),
        ("PLMS", "plms", None),
    ],
)
def test_what_it_stands_for(alias, solver, grid):
    assert ds.solvers.resolve(alias) == (ds.solvers.named(solver), grid)


def test_the_grid_of_an_alias_is_used_unless_one_is_given():
    for path in ("edm", "vp"):
        assert ds.plan(path, "DPM++ 2M Karras", steps=7) == ds.plan(path, "dpmpp-2m", steps=7, grid="karras")
    assert ds.plan("vp", "DPM++ 2M Karras", steps=7, grid="uniform-t") == ds.plan(
        "vp", "dpmpp-2m", steps=7, grid="uniform-t"
    )
    assert ds.plan("vp", "DPM++ 2M Karras", grid=[0.9, 0.5, 0.2]) == ds.plan("vp", "dpmpp-2m", grid=[0.9, 0.5, 0.2])
    assert ds.plan("vp", "DPM++ 2M", steps=7) == ds.plan("vp", "dpmpp-2m", steps=7)


def test_refused_names_say_what_is_nearest():
    for table, named, keyword in ((REFUSED, ds.solvers.named, "solver"), (REFUSED_GRIDS, grids.named, "grid")):
        for alias, nearest in table.items():
            named(nearest)
            with pytest.raises(ValueError, match="the nearest that is") as error:
                ds.plan("vp", **{"solver": "euler", keyword: alias}, steps=3)
            assert f"{keyword}={alias!r} is not offered" in str(error.value)
            assert repr(nearest) in str(error.value)


@pytest.mark.parametrize(
    ("solver", "says"),
    [
        ("DPM++ 2M Karas", "did you mean 'DPM\\+\\+ 2M Karras'"),
        ("dpmpp_2n", "did you mean 'dpmpp_2m'"),
        ("unipc-33", "did you mean 'unipc-3'"),
        ("lms-3(degree=2)", "solver=.* has no option 'degree'; its options are points, "),
        ("DEISMultistepScheduler(solver_order=9)", "solver=.* has no option 'solver_order'"),
    ],
)
def test_suggestions(solver, says):
    with pytest.raises(ValueError, match=says):
        ds.solvers.named(solver)


def test_diffusers_has_these_classes_with_these_defaults():
    df = pytest.importorskip("diffusers")
    for alias in [*ALIASES, *REFUSED]:
        name, _, options = alias.partition("(")
        if not name.endswith("Scheduler"):
            continue
        known = inspect.signature(getattr(df, name)).parameters
        for option in filter(None, options.rstrip(")").split(", ")):
            assert option.partition("=")[0] in known, alias
        if "solver_order" in known and "Single" not in name:
            assert known["solver_order"].default == 2


@pytest.mark.parametrize("grid", ["karras", "exponential"])
def test_k_diffusion_has_these_functions(grid, mixture):
    try:
        kd = peers.k_diffusion("sampling")
    except ImportError as error:
        pytest.skip(f"k-diffusion is not installed: {error}")
    model, path = mixture_model(mixture, "edm", "denoised"), paths.EDM()
    sigmas = torch.from_numpy(grids.named(grid)(path, 8))
    x = 80 * torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for alias in [*ALIASES, *REFUSED]:
        if alias.startswith("sample_"):
            function = getattr(kd, alias)
            if alias in ALIASES and "ancestral" not in alias and "sde" not in alias:
                at = sigmas[:-1] if "lms" in alias else sigmas  # to sigma = 0 it extrapolates at full order
                theirs = function(model.net, x, at, disable=True)
                torch.testing.assert_close(
                    ds.sample(model, noise=x, solver=alias, grid=at), theirs, rtol=1e-11, atol=1e-12, msg=alias
                )


def comfyui(name, n):
    """The rows of a table of 1000 levels that ComfyUI's scheduler of that name calls the model at."""
    if name == "simple":
        return [999 - int(x * 1000 / n) for x in range(n)]
    if name == "ddim_uniform":
        return list(range(1, 1000, 1000 // n))[::-1]
    if name == "sgm_uniform":
        return np.linspace(999, 0, n + 1)[:-1]
    return np.linspace(999, 0, n)  # normal


@pytest.mark.parametrize("name", ["simple", "sgm_uniform", "normal", "ddim_uniform"])
def test_comfyui_grids(name):
    """To within a row of the table, or half of one where we round; its ddim_uniform where n divides 1000."""
    for n in (4, 10, 20, 25, 30, 50):
        if name == "ddim_uniform" and 1000 % n:
            continue
        called = ds.plan("ddpm", "euler", steps=n, grid=name).times[:-1]
        assert np.abs(called - comfyui(name, n)).max() <= 1.5
        flow = ds.plan("rectified", "euler", steps=n, grid=name).times[:-1]
        assert np.abs(flow * 1000 - (np.array(comfyui(name, n)) + 1)).max() <= 1 + 1e-9


def test_comfyui_kl_optimal():
    i = np.arange(9) / 8
    sigmas = np.tan(i * np.arctan(0.002) + (1 - i) * np.arctan(80))
    np.testing.assert_allclose(ds.plan("edm", "euler", steps=9, grid="kl_optimal").times, [*sigmas, 0], rtol=1e-12)

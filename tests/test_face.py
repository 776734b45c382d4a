"""What a user sees first: names, one-line reprs, results with a common face, seeds, dtypes, old names."""

import importlib
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import diffsolve as ds
from diffsolve.common.deprecation import MOVED
from diffsolve.noise import Key


@pytest.fixture(scope="module")
def model():
    return ds.load("mixture-2d")


def fresh(code):
    """What a new process prints."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_nothing_heavy_is_imported_before_it_is_used():
    heavy = ("torch", "numpy", "scipy", "torchsde", "torchdiffeq", "rich")
    code = "import sys, {}; print([name for name in {!r} if name in sys.modules])"
    assert fresh(code.format("diffsolve", heavy)) == "[]"
    assert fresh(code.format("diffsolve.cli.app", heavy)) == "[]"
    light = ("torchsde", "torchdiffeq", "scipy", "diffusers", "rich")
    load = "import sys, diffsolve as ds; ds.solve, ds.metrics, ds.integrations; "
    assert fresh(f"{load}print([name for name in {light!r} if name in sys.modules])") == "[]"


def test_packages_and_names_are_there_lazily():
    names = ["grids", "integrations", "likelihood", "metrics", "models", "paths", "reference", "solvers"]
    code = f"import diffsolve as ds; print(*(getattr(ds, name).__name__ for name in {names}), ds.reversible.__name__)"
    assert fresh(code).split() == [*(f"diffsolve.{name}" for name in names), "diffsolve.api.reversible"]
    for name in ds.__all__:
        assert getattr(ds, name) is not None
    assert set(ds.__all__) <= set(dir(ds))


RESULTS = {
    "Run": lambda model: ds.solve(model, (3, 2), solver="unipc-3", nfe=10, seed=0),
    "AdaptiveRun": lambda model: ds.solve(model, (3, 2), solver=ds.Adaptive(rtol=1e-2, atol=1e-2), seed=0),
    "DensityRun": lambda model: ds.solve(model, (3, 2), nfe=4, seed=0, log_prob="model"),
    "Chain": lambda model: ds.langevin(model, torch.ones(3, 2), 0.5, steps=2, step=0.1, seed=0),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_results_have_a_common_face_of_one_line(model, kind):
    result = RESULTS[kind](model)
    assert type(result).__name__ == kind
    assert isinstance(result, ds.Result)
    assert result.x.shape == (3, 2)
    assert result.done is True
    assert result.status == (ds.Status.DONE,) * 3
    assert np.all(np.asarray(result.nfe) > 0)
    assert Key.of(result.seed).seed == 0
    text = repr(result)
    assert re.fullmatch(rf"{kind}\(nfe=[\d.]+, x=\(3, 2\) float32, .*seed=.*\)", text), text
    assert "\n" not in text
    assert len(text) < 200


def test_reprs(model):
    run = RESULTS["Run"](model)
    assert repr(run).endswith(f"solver={run.tableau.solver!r}, seed=0)")
    half = ds.solve(model, (3, 2), solver="euler", nfe=4, seed=0, max_calls=2)
    assert not half.done
    assert "not done: 3 of 3" in repr(half)
    assert half.status == (ds.Status.BUDGET_SPENT,) * 3
    assert repr(ds.log_prob(model, run.x, solver="heun", nfe=4)).startswith("LogProb(3 samples of 2 numbers, mean ")
    net = torch.nn.Linear(2, 2)
    assert repr(ds.adapt(net, "condot", "velocity")) == "Model(Linear, path=CondOT(), predicts='velocity')"
    assert "clock='1-t'" in repr(ds.adapt(net, "condot", "velocity", clock="1-t"))


# ---------------------------------------------------------------------------------------------------- seeds


def test_seeds_of_every_kind_mean_the_same(model):
    one = ds.sample(model, (3, 2), nfe=3, seed=7)
    for seed in (np.int64(7), np.uint32(7), torch.tensor(7), np.array(7), Key(7)):
        assert torch.equal(ds.sample(model, (3, 2), nfe=3, seed=seed), one)
    each = ds.sample(model, (3, 2), nfe=3, seed=[1, 2, 3])
    for seeds in ((1, 2, 3), np.array([1, 2, 3]), torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3], dtype=torch.int32)):
        assert torch.equal(ds.sample(model, (3, 2), nfe=3, seed=seeds), each)


@pytest.mark.parametrize("seed", [True, 0.5, "7", torch.tensor(0.5), np.array([True]), -1, 2**64, [0.5]])
def test_other_seeds_are_refused(seed):
    with pytest.raises((TypeError, ValueError), match=r"seed(\[0\])? must be"):
        Key.of(seed)


def test_a_generator_moves_on_and_the_global_state_does_not():
    def drawn(generator):
        return [Key.of(generator).seed for _ in range(3)]

    state = torch.get_rng_state()
    one, two = (drawn(torch.Generator().manual_seed(5)) for _ in range(2))
    assert one == two
    assert len(set(one)) == 3
    assert drawn(torch.Generator().manual_seed(6)) != one
    generators = [torch.Generator().manual_seed(5), torch.Generator().manual_seed(6)]
    assert Key.of(generators).seed == (one[0], drawn(torch.Generator().manual_seed(6))[0])
    assert torch.equal(torch.get_rng_state(), state)


def calls_with_seeds(model):
    x = torch.tensor([[0.3, 0.1], [-0.2, 0.7]])
    return {
        "solve": lambda seed: ds.solve(model, (2, 2), solver="ddim(eta=1)", nfe=3, seed=seed).x,
        "diffuse": lambda seed: ds.diffuse(model, x, 0.5, seed=seed),
        "log_prob": lambda seed: (
            ds.log_prob(model, x, solver="heun", nfe=4, trace="hutchinson(kind='gaussian')", seed=seed).value
        ),
        "bits_per_dim": lambda seed: ds.bits_per_dim(model, x.long(), solver="heun", nfe=4, seed=seed).value,
        "langevin": lambda seed: ds.langevin(model, x, 0.5, steps=1, step=0.1, seed=seed).x,
        "annealed_langevin": lambda seed: ds.annealed_langevin(model, (2, 2), levels=2, steps=1, seed=seed).x,
    }


@pytest.mark.parametrize("name", ["solve", "diffuse", "log_prob", "bits_per_dim", "langevin", "annealed_langevin"])
def test_every_function_takes_a_generator(model, name):
    function, generator = calls_with_seeds(model)[name], torch.Generator().manual_seed(3)
    first, second = function(generator), function(generator)
    assert not torch.equal(first, second)
    again = torch.Generator().manual_seed(3)
    assert torch.equal(function(again), first)
    assert torch.equal(function(Key.of(torch.Generator().manual_seed(3)).seed), first)
    assert torch.equal(function(np.int64(5)), function(5))


def test_the_run_of_a_generator_can_be_repeated(model):
    run = ds.solve(model, (2, 2), nfe=3, seed=torch.Generator().manual_seed(1))
    assert torch.equal(ds.solve(model, (2, 2), nfe=3, seed=run.seed).x, run.x)


# --------------------------------------------------------------------------------------------------- dtypes


def test_torchs_default_dtype_is_respected():
    bare = ds.adapt(lambda x, t: -x, "condot", "velocity")
    half = ds.adapt(lambda x, t: -x, "condot", "velocity", dtype=torch.float16)
    before = torch.get_default_dtype()
    expected = {torch.float64: torch.float64, torch.float32: torch.float32, torch.float16: torch.float32}
    try:
        for default, state in expected.items():
            torch.set_default_dtype(default)
            assert ds.sample(bare, (2, 2), nfe=2, seed=0).dtype == state
            assert ds.annealed_langevin(bare, (2, 2), levels=2, steps=1, seed=0).x.dtype == state
            assert ds.sample(half, (2, 2), nfe=2, seed=0).dtype == torch.float32
            assert ds.sample(bare, (2, 2), nfe=2, seed=0, dtype=torch.float32).dtype == torch.float32
    finally:
        torch.set_default_dtype(before)


# ------------------------------------------------------------------------------------------------- old names


@pytest.mark.parametrize("old", MOVED)
def test_old_modules_are_the_new_ones(old):
    importlib.import_module(f"diffsolve.{MOVED[old]}")
    sys.modules.pop(f"diffsolve.{old}", None)
    with pytest.warns(DeprecationWarning, match=rf"diffsolve\.{old} is now diffsolve\.{MOVED[old]}") as caught:
        module = importlib.import_module(f"diffsolve.{old}")
    assert module is importlib.import_module(f"diffsolve.{MOVED[old]}")
    assert module.__spec__.name == module.__name__ == f"diffsolve.{MOVED[old]}"
    assert len(caught) == 1


def test_the_warning_points_at_the_import():
    code = "import warnings\nwarnings.simplefilter('error')\ntry:\n    from diffsolve.names import Registry\n"
    code += "except DeprecationWarning as warning:\n    print('warned')\n"
    assert fresh(code) == "warned"
    command = [sys.executable, "-c", "from diffsolve.names import Registry, parse"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "DeprecationWarning: module diffsolve.names is now diffsolve.common.registry" in run.stderr  # in __main__


def test_old_names_in_packages_and_classes(model):
    with pytest.warns(DeprecationWarning, match="diffsolve.parallel.Statistics is now"):
        assert ds.parallel.Statistics is ds.execute.results.Rounds
    with pytest.warns(DeprecationWarning, match="diffsolve.execute.Wiener is now"):
        assert ds.execute.Wiener is ds.execute.executor.BrownianPath
    with pytest.warns(DeprecationWarning, match="diffsolve.guidance.Guidance is now"):
        assert ds.guidance.Guidance is ds.Guidance
    t = torch.tensor([0.5], dtype=torch.float64)
    with pytest.warns(DeprecationWarning, match="Model.told is now Model.network_time"):
        assert torch.equal(model.told(t), model.network_time(t))
    chain = RESULTS["Chain"](model)
    with pytest.warns(DeprecationWarning, match="Chain.key is now Chain.seed"):
        assert chain.key is chain.seed
    density = ds.log_prob(model, torch.zeros(1, 2), solver="heun", nfe=4)
    with pytest.warns(DeprecationWarning, match="LogProb.numbers is now LogProb.dim"):
        assert density.numbers == density.dim == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for thing in (chain, density, model):
            assert repr(thing)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ds.parallel.nothing


def test_an_old_option_of_begin(model):
    with pytest.warns(DeprecationWarning, match="option takes of begin is now prediction") as warned:
        old = ds.begin(model, (2, 2), solver="euler", steps=2, seed=0, takes="denoised")
    assert old.program.prediction == "denoised"
    assert warned[0].filename == __file__

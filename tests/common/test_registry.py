"""Names with options, and names that programs and packages add."""

from dataclasses import dataclass
from importlib import metadata

import pytest
import torch

import diffsolve as ds
from diffsolve.common.registry import Registry
from diffsolve.models import adapters
from diffsolve.solvers import Multistep


@dataclass(frozen=True)
class Thing:
    size: int = 1


def broken(size=1):
    return len(size)  # a bug: an int has no length


def needs(size):
    return Thing(size)


def registry(**more):
    return Registry("thing", Thing, {"one": Thing, "broken": broken, "needs": needs, "plain": lambda: Thing(), **more})


def test_names_with_options():
    assert registry().resolve("one") == Thing(1)
    assert registry().resolve(" ONE (size=3)") == Thing(3)
    assert registry().resolve(Thing(5)) == Thing(5)


DEEP = {
    "signs": "-" * 5000 + "1",
    "more signs": "-" * 100_000 + "1",
    "sums": "1+" * 50_000 + "1",
    "digits": "9" * 5000,
    "brackets": "(" * 5000 + "1" + ")" * 5000,
    "no end": "[" * 300_000,
    "mappings": "{1:" * 500 + "1" + "}" * 500,
}


@pytest.mark.parametrize("deep", DEEP)
def test_a_value_nested_deeply_is_refused_in_a_short_message(deep):
    says = r"thing must be written name or name\(option=value, ...\), got 'one\(size=.*\.\.\.$"
    with pytest.raises(ValueError, match=says) as refused:
        registry().resolve(f"one(size={DEEP[deep]})")
    assert len(str(refused.value)) < 300
    with pytest.raises(ValueError, match="solver must be written"):
        ds.plan("condot", f"ddim(eta={DEEP[deep]})", nfe=3)


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("on", ValueError, "thing must be one of 'broken', 'needs', 'one', 'plain', got 'on'; did you mean 'one'?"),
        ("xyz", ValueError, "thing must be one of 'broken', 'needs', 'one', 'plain', got 'xyz'$"),
        ("one(width=3)", ValueError, r"thing='one\(width=3\)' has no option 'width'; its options are size$"),
        ("plain(size=3)", ValueError, r"thing='plain\(size=3\)' has no option 'size'; it has no options"),
        ("needs", ValueError, "thing must be 'needs' with its options, got 'needs': missing a required argument"),
        ("one(3)", ValueError, r"thing must be written name or name\(option=value, ...\), got 'one\(3\)'"),
        ("one(size=", ValueError, "thing must be written"),
        ("one(**{'size': 1})", ValueError, "thing must be written"),
        ("one(size={[]: 1})", ValueError, "thing must be written"),
        ("one(size=\0)", ValueError, "thing must be written"),
        (3, TypeError, "thing must be a name or a Thing, got 3"),
    ],
)
def test_bad_specs(spec, error, says):
    with pytest.raises(error, match=says):
        registry().resolve(spec)


def test_a_bug_of_a_factory_comes_through():
    with pytest.raises(TypeError, match="has no len"):
        registry().resolve("broken")
    with pytest.raises(TypeError, match="what 'odd' makes must be a Thing, got 7"):
        registry(odd=lambda: 7).resolve("odd")


def test_long_lists_are_named_and_near_misses_given():
    with pytest.raises(
        ValueError, match=r"ds.solvers.names\(\) lists, got 'uni-pc-3'; did you mean 'unipc-3'"
    ) as error:
        ds.solvers.named("uni-pc-3")
    assert len(str(error.value)) < 200


def test_register():
    things = registry()
    things.register("Mine", Thing)
    assert things.resolve("mine(size=2)") == Thing(2)
    assert "mine" in things.names()
    with pytest.raises(ValueError, match="name must be new among the things .*, got 'MINE'"):
        things.register("MINE", needs)
    things.register("mine", lambda: Thing(9), replace=True)
    assert things.resolve("mine") == Thing(9)
    for name, error in (("a(b=1)", ValueError), ("a()", ValueError), ("", ValueError), (3, TypeError)):
        with pytest.raises(error, match="name must be"):
            things.register(name, Thing)
    with pytest.raises(TypeError, match="factory must be a callable that makes a Thing, got 3"):
        things.register("other", 3)


@dataclass(frozen=True)
class Mine(Multistep):
    points: int = 1


class Score:
    def __call__(self, one, other):
        return 0.0


@pytest.mark.parametrize(
    ("kind", "factory"),
    [
        ("solvers", Mine),
        ("grids", ds.grids.Karras),
        ("paths", ds.paths.EDM),
        ("likelihood.traces", lambda: ds.likelihood.traces.Exact()),
        ("metrics", Score),
    ],
)
def test_every_kind_takes_names(monkeypatch, kind, factory):
    package = ds
    for part in kind.split("."):
        package = getattr(package, part)
    known = package.registry if hasattr(package, "registry") else ds.metrics.scores.registry
    monkeypatch.setattr(known, "entries", dict(known.entries))
    package.register("mine", factory)
    assert type(package.named("mine")) is type(factory())


def test_a_registered_solver_is_used_everywhere(monkeypatch):
    monkeypatch.setattr(ds.solvers.registry, "entries", dict(ds.solvers.registry.entries))
    ds.solvers.register("mine", Mine)
    model = ds.load("mixture-2d")
    x, y = (ds.sample(model, (4, 2), solver=solver, nfe=5, seed=0) for solver in ("mine", "euler"))
    assert torch.equal(x, y)


def fake_plugins(monkeypatch, group, name, value):
    loads = []

    class Point:
        def __init__(self):
            self.name = name

        def load(self):
            loads.append(name)
            return value

    monkeypatch.setattr(metadata, "entry_points", lambda *, group: [Point()] if group == wanted else [])
    wanted = group
    return loads


def test_an_installed_package_brings_a_solver(monkeypatch):
    monkeypatch.setattr(ds.solvers.registry, "entries", dict(ds.solvers.registry.entries))
    loads = fake_plugins(monkeypatch, "diffsolve.solvers", "Theirs", Mine)
    assert "theirs" in ds.solvers.names()
    assert ds.solvers.named("heun").order == 2
    assert loads == []  # not before it is asked for
    assert ds.solvers.named("theirs(points=2)") == Mine(points=2)
    assert ds.solvers.named("theirs") == Mine()
    assert loads == ["Theirs"]
    with pytest.raises(ValueError, match="did you mean 'theirs'"):
        ds.solvers.named("their")


def test_an_installed_package_brings_a_kind_of_model(monkeypatch):
    monkeypatch.setattr(adapters, "ADAPTERS", list(adapters.ADAPTERS))

    class Theirs:
        net = staticmethod(lambda x, t: x)

    loads = fake_plugins(
        monkeypatch,
        "diffsolve.models",
        "theirs",
        lambda thing: ds.adapt(thing.net, "condot", "velocity") if isinstance(thing, Theirs) else None,
    )
    with pytest.raises(TypeError, match="model must be a Model .*, got one of type str"):
        ds.adapt("digits")
    assert ds.adapt(Theirs()).predicts == "velocity"
    assert ds.sample(Theirs(), (2, 2), nfe=2, seed=0).shape == (2, 2)
    assert loads == ["theirs"]

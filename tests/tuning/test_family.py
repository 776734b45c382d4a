"""One solver for several budgets: how they are learned, kept, picked, and what they say of where they come from."""

import json

import pytest
import torch
from support.learning import RING, Net, noise

import diffsolve as ds
from diffsolve.common.files import FileError
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import ring
from diffsolve.tuning import fit
from diffsolve.tuning.pilot import grown

QUICK = {"solver": "unipc-3", "teacher": 20, "seed": 0, "dtype": torch.float64, "iterations": 2}


@pytest.fixture(scope="module")
def found():
    return fit(RING, (24, 2), nfe=range(2, 5), **QUICK)


@pytest.mark.parametrize("gap", [0, 1])
@pytest.mark.parametrize(("path", "predicts"), [("condot", "velocity"), ("edm", "denoised"), ("ddpm", "noise")])
def test_calls_of_no_weight_change_nothing(path, predicts, gap):
    model = ds.adapt(Net(), path, predicts)
    fewer, x = ds.plan(model, "unipc-3", nfe=4), noise() * model.path.prior_std()
    more = grown(model, fewer, 6, gap).tableau
    assert more.nfe == 6
    assert set(fewer.times) < set(more.times)
    torch.testing.assert_close(
        ds.sample(model, noise=x, solver=more), ds.sample(model, noise=x, solver=fewer), rtol=1e-9, atol=1e-9
    )


def test_one_teacher_and_each_from_the_one_before(found):
    family = found.family
    assert list(found) == [2, 3, 4]
    assert [found[n].tableau for n in found] == [family[n] for n in (2, 3, 4)]
    after = [tuning.after.value for tuning in found.values()]
    assert after == sorted(after, reverse=True)
    alone = fit(RING, (24, 2), nfe=2, **QUICK)
    assert family[2] == alone.tableau
    assert alone.calls == found[2].calls
    assert str(found).count("held-out loss") == 3


def test_a_family_is_a_solver(found):
    family, x = found.family, noise(4, 2)
    for nfe in family.tableaux:
        wanted = ds.sample(RING, noise=x, solver=family[nfe])
        assert torch.equal(ds.sample(RING, noise=x, solver=family, nfe=nfe), wanted)
        assert torch.equal(ds.sample(RING, noise=x, solver=family, steps=nfe), wanted)
    assert str(family) == "Family(2, 3, 4 calls)"
    for nfe in (1, 9):
        with pytest.raises(ValueError, match=f"nfe must be 2, 3 or 4, got {nfe}"):
            ds.sample(RING, noise=x, solver=family, nfe=nfe)
    with pytest.raises(ValueError, match="grid must be left out"):
        ds.sample(RING, noise=x, solver=family, nfe=4, grid="karras")
    with pytest.raises(ValueError, match=r"those that it was learned for, \(0.0, 1.0\)"):
        ds.sample(RING, noise=x, solver=family, nfe=4, start=0.5)


def test_a_file_holds_all_of_it(found, tmp_path):
    family = ds.tune(RING, (24, 2), nfe=[3, 2], out=tmp_path / "f.json", checkpoint=tmp_path / "c", **QUICK)
    assert [file.name for file in tmp_path.iterdir()] == ["f.json"]
    again = ds.Family.load(tmp_path / "f.json")
    assert again.tableaux == family.tableaux == {n: found.family[n] for n in (2, 3)}
    assert again.provenance == family.provenance
    about = again.provenance
    assert (about.seed, about.noises, about.teacher, about.guidance) == (0, 24, "20", 1.0)
    assert about.options == {"solver": "unipc-3", "dtype": "torch.float64", "iterations": 2}
    plain = json.loads((tmp_path / "f.json").read_text())
    for change, says in (
        ({"format": "x"}, "format must be 'diffsolve.family/1'"),
        ({"provenance": {}}, "provenance must be an object with"),
        ({"tableaux": {}}, "tableaux must be at least one"),
        ({"tableaux": {"7": plain["tableaux"]["3"]}}, r"tableaux\[7\] must be a run of 7 calls"),
    ):
        (tmp_path / "g.json").write_text(json.dumps({**plain, **change}))
        with pytest.raises(FileError, match=says):
            ds.Family.load(tmp_path / "g.json")


def test_it_warns_where_it_was_not_learned(found, recwarn):
    family = found.family
    ds.sample(RING, (2, 2), solver=family, nfe=3, seed=0)
    assert not recwarn
    other = mixture_model(ring(modes=5), "condot")
    with pytest.warns(UserWarning, match="was learned with another network"):
        ds.sample(other, (2, 2), solver=family, nfe=3, seed=0)
    guided = ds.adapt(RING.net, "condot", "velocity")
    with pytest.warns(UserWarning, match="another guidance, of 1 rather than 2"):
        ds.plan(RING, family, nfe=3, guidance=2.0)
    ds.plan(guided, family, nfe=3)
    ds.plan("condot", family, nfe=3)  # of a path alone nothing is known


@pytest.mark.parametrize(("nfe", "message"), [([], "at least one budget"), ([1], ">= 2, got 1"), ([3.5], "got 3.5")])
def test_budgets_are_checked(nfe, message):
    with pytest.raises(ValueError, match=message):
        fit(RING, (8, 2), nfe=nfe, **QUICK)

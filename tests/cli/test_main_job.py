"""What a new user does first, as the README says it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.product import shown

import diffsolve as ds
from diffsolve import reference

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = {page.name: blocks for page in PAGES if (blocks := re.findall(r"```python\n(.*?)```", page.read_text(), re.S))}

TOLD = ("editing.md", "start.md", "tuning.md")  # pages whose blocks follow one another; those of all others stand alone


def test_the_digits_are_digits():
    """A classifier of the real digits recognises at least 95 % of the samples of every class."""
    svm = pytest.importorskip("sklearn.svm")
    from diffsolve.reference.digits import load_data

    images, labels = load_data()
    classifier = svm.SVC(gamma=0.001).fit(images.flatten(1) * 8 + 8, labels)
    wanted = torch.arange(10).repeat_interleave(60)
    x = ds.sample(ds.load("digits"), (600, 1, 8, 8), nfe=10, seed=0, cond={"label": wanted})
    found = torch.from_numpy(classifier.predict(x.clamp(-1, 1).flatten(1) * 8 + 8))
    right = (found == wanted).float().view(10, 60).mean(1)
    assert right.min() >= 0.95, right


def test_the_mixture_is_its_ring():
    x = ds.sample(ds.load("mixture-2d"), (4096, 2), solver="unipc-3", nfe=10, seed=0)
    assert (x.norm(dim=1) - 4).abs().mean() < 0.35  # on the ring of radius 4, modes of deviation 0.2
    share = (
        torch.histc(torch.atan2(x[:, 1], x[:, 0]).add(torch.pi / 8).remainder(2 * torch.pi), 8, 0, 2 * torch.pi) / 4096
    )
    assert (share - 1 / 8).abs().max() < 0.03


def test_nothing_heavy_is_imported():
    """What keeps the import quick; benchmarks time it."""
    code = "import sys, diffsolve; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"scipy", "torchdiffeq", "torchsde", "triton", "sklearn", "typer", "PIL", "diffusers"} & set(modules)


@pytest.mark.parametrize("page", CODE)
@pytest.mark.docs
def test_the_code_in_the_docs_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told: dict[str, object] = {"__name__": page}
    for block in shown(CODE[page]):
        exec(compile(block, page, "exec"), told if page in TOLD else {"__name__": page})


def test_reference_models():
    fashion = ["fashion", "fashion-edm", "fashion-latent", "fashion-noise", "fashion-student"]
    assert reference.names() == ["digits", "digits-student", *fashion, "mixture-2d"]
    with pytest.raises(ValueError, match="model must be one of .*, got 'digit'; did you mean 'digits'"):
        ds.load("digit")
    for path in ds.paths.names():
        x = ds.sample(ds.load(f"mixture-2d(path={path!r}, predicts='v')"), (8, 2), nfe=8, seed=0)
        assert x.isfinite().all()

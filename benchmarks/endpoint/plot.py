"""The plot: error against network calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath

from endpoint.tables import Study, best, ours

SHOWN = ("ring", "iso64", "aniso64", "iso1024", "spectrum1024")
POPULAR = {
    "k-diffusion dpmpp_2m karras": "DPM++(2M), Karras",
    "k-diffusion heun karras": "Heun, Karras",
    "diffusers unipc3 data bh2 lowered karras": "UniPC-3, Karras",
    "k-diffusion lms4 karras": "LMS-4, Karras",
    "diffusers unipc3 data bh2 lowered shift=1": "UniPC-3",
    "diffusers dpm++2m midpoint lowered shift=1": "DPM++(2M)",
    "diffusers FlowMatchEuler shift=1": "Euler",
    "torchdiffeq midpoint uniform": "midpoint",
}


def plot(studies: Mapping[str, Study], budgets: Sequence[int], file: FilePath) -> None:
    """auto, the best of ours and of the peers, and the popular peers; a row for each path."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.style.use("diffsolve.common.look")
    shown = [t for t in SHOWN if all(t in s["peers"] for s in studies.values())]
    figure, axes = plt.subplots(len(studies), len(shown), figsize=(3.6 * len(shown), 3.1 * len(studies)), squeeze=False)
    columns = range(len(budgets))
    for row, (path, study) in zip(axes, studies.items(), strict=True):
        for axis, target in zip(row, shown, strict=True):
            peers = study["peers"][target]
            for name, title in POPULAR.items():
                if name in peers:
                    axis.loglog(budgets, peers[name], "o-", ms=2, lw=0.8, alpha=0.7, label=title)
            axis.loglog(budgets, [best(peers, b)[0] for b in columns], "k--", lw=1.2, label="best peer of each cell")
            axis.loglog(budgets, [ours(study, target, b)[0] for b in columns], "C1:", lw=1.2, label="best of ours")
            for rule, errors in study["auto"][target].items():
                axis.loglog(budgets, errors, ".-", lw=1.8, label=f"diffsolve {rule}")
            axis.set_title(f"{path}, {target}", fontsize=9)
            axis.set_xticks(budgets, map(str, budgets), fontsize=7)
            axis.minorticks_off()
            axis.set_ylim(top=3)
        row[0].set_ylabel("relative error")
        row[0].legend(fontsize=6)
    for axis in axes[-1]:
        axis.set_xlabel("network calls")
    figure.savefig(file, dpi=90)

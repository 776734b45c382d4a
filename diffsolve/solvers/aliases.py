"""Names by which other libraries call what is offered here, and by which they call what is not.

An alias stands for a solver with options and, where it names one, for a grid. It is what that library does by
default, but for two rules of this one: the ends (`tableau.ends`), and the grid, which is the path's own where
the alias names none. Case and spacing do not matter. The names of this library come first: "euler", "heun",
"ddim" and the grid "beta" are its own, whoever else has such a name.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from diffsolve.common.registry import parse

__all__ = ["aliases", "expand", "expand_grid"]

Alias = tuple[str, str | None]

_LMS = "ab-4(frame='noise')"
_HEUN = "heun(frame='noise')"
_ANCESTRAL = "ddim(eta=1.0)"
_2M_SDE_HEUN = "res-2m(tau=1.0)"  # its weights are the exact ones

_K_DIFFUSION: dict[str, str] = {
    "euler": "euler",
    "euler_ancestral": _ANCESTRAL,  # its eta is that of ddim
    "heun": _HEUN,
    "dpm_2": "dpm-2s",
    "lms": _LMS,
    "dpm_2_ancestral": "dpm-2-ancestral",
    "dpmpp_2m": "dpmpp-2m",
    "dpmpp_2s_ancestral": "dpmpp-2s-ancestral",
    # As these are by default, eta = 1, their law is that of tau = 1.
    "dpmpp_sde": "dpmpp-sde",
    "dpmpp_2m_sde": "dpmpp-2m-sde",  # solver_type="midpoint"
    "dpmpp_3m_sde": "dpmpp-3m-sde",
}
"""sampling.sample_*."""

_COMFYUI: dict[str, str] = {
    **_K_DIFFUSION,
    "res_multistep": "res-2m",
    "uni_pc": "unipc-3(bh='bh1')",
    "uni_pc_bh2": "unipc-3",
    "er_sde": "er-sde-3",
    "sa_solver": "sa-3(limit=5)",
    "sa_solver_pece": "sa-3(limit=5, mode='pece')",
    "seeds_2": "seeds-2",
    "seeds_3": "seeds-3",
    "deis": "tab-2",  # three values; its clock is that of a VP path fitted to the range of sigma
    "dpmpp_2m_sde_heun": _2M_SDE_HEUN,
    # On the GPU ComfyUI draws the same law elsewhere.
    "dpmpp_sde_gpu": "dpmpp-sde",
    "dpmpp_2m_sde_gpu": "dpmpp-2m-sde",
    "dpmpp_3m_sde_gpu": "dpmpp-3m-sde",
    "dpmpp_2m_sde_heun_gpu": _2M_SDE_HEUN,
    "ipndm": "ipndm-4",
    # As it was meant: the code there has (1 - a b) / 2 for (1 - a) b / 2, which is wrong from three values on.
    "ipndm_v": _LMS,
}
"""KSampler names; without those that are our own."""

_A1111: dict[str, str] = {
    "Euler": "euler",
    "Euler a": _ANCESTRAL,
    "Heun": _HEUN,
    "DPM2": "dpm-2s",
    "LMS": _LMS,
    "DPM2 a": "dpm-2-ancestral",
    "DPM++ 2M": "dpmpp-2m",
    "DPM++ 2M SDE": "dpmpp-2m-sde",
    "DPM++ 2M SDE Heun": _2M_SDE_HEUN,
    "DPM++ 2S a": "dpmpp-2s-ancestral",
    "DPM++ 3M SDE": "dpmpp-3m-sde",
    "DPM++ SDE": "dpmpp-sde",
    "Restart": "restart",
    "UniPC": "unipc-3(bh='bh1')",
}
"""The sampler menu of the web UI, each also followed by the name of a grid, as in its versions before 1.9."""

_DIFFUSERS: dict[str, Alias] = {
    "DDIMScheduler": ("ddim", None),
    "DDIMParallelScheduler": ("ddim", None),
    "CogVideoXDDIMScheduler": ("ddim", None),
    "DDPMScheduler": (_ANCESTRAL, None),
    "DDPMParallelScheduler": (_ANCESTRAL, None),
    "DDPMWuerstchenScheduler": (_ANCESTRAL, None),
    "PNDMScheduler": ("pndm", None),
    "PNDMScheduler(skip_prk_steps=True)": ("plms", None),
    "IPNDMScheduler": ("ipndm-4", None),
    "LMSDiscreteScheduler": (_LMS, None),
    "EulerDiscreteScheduler": ("euler", None),
    "EulerAncestralDiscreteScheduler": (_ANCESTRAL, None),
    "HeunDiscreteScheduler": (_HEUN, None),
    "KDPM2DiscreteScheduler": ("dpm-2s", None),
    "KDPM2AncestralDiscreteScheduler": ("dpm-2-ancestral", None),
    "DPMSolverSDEScheduler": ("dpmpp-sde", None),
    "DPMSolverMultistepScheduler(algorithm_type='sde-dpmsolver++')": ("dpmpp-2m-sde(lower_final=15)", None),
    "CogVideoXDPMScheduler": ("dpmpp-2m-sde", None),
    "CosineDPMSolverMultistepScheduler": ("dpmpp-2m-sde(lower_final=15)", "exponential"),
    "SASolverScheduler": ("sa-2(corrector=2, limit=5)", None),
    "KarrasVeScheduler": ("edm-heun(s_churn=80, s_min=0.05, s_max=50, s_noise=1.007)", "karras"),
    "ScoreSdeVeScheduler": ("reverse-diffusion", None),  # its corrector is that of ds.Langevin
    "MiniMaxH3Scheduler": ("euler", None),
    "FlowMatchEulerDiscreteScheduler": ("euler", None),
    "FlowMatchHeunDiscreteScheduler": ("heun", None),
    # Of students.
    "LCMScheduler": ("lcm", None),
    "FlowMatchLCMScheduler": ("lcm", None),
    "TCDScheduler": ("tcd", None),
    "SCMScheduler": ("scm", None),
    "CMStochasticIterativeScheduler": ("consistency", None),
    "FlowMapEulerDiscreteScheduler": ("flow-map", None),
    "EDMEulerScheduler": ("euler", "karras"),
    **{
        f"{name}{order}": (f"{solver}-{points}{rest}", grid)
        for name, solver, rest, grid in (
            ("DPMSolverMultistepScheduler", "dpmpp", "m(lower_final=15)", None),
            ("EDMDPMSolverMultistepScheduler", "dpmpp", "m(lower_final=15)", "karras"),
            ("DEISMultistepScheduler", "deis", "(lower_final=15)", None),
            ("UniPCMultistepScheduler", "unipc", "", None),
        )
        for order, points in (("", 2), ("(solver_order=2)", 2), ("(solver_order=3)", 3))
    },
}
"""Scheduler classes with their default options, and with some common ones."""

_DIFFUSERS_GRIDS = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential"}

_FAMILY: dict[str, str] = {
    # Linear multistep in rho = sigma / alpha, k values: Adams-Bashforth in the frame noise.
    **{f"lms-{k}": f"ab-{k}(frame='noise')" for k in range(1, 5)},
    # iPNDM with weights for the steps there are is the same.
    **{f"ipndm-v-{k}": f"ab-{k}(frame='noise')" for k in range(1, 5)},
}

ALIASES: dict[str, Alias] = {
    **{name: (solver, None) for name, solver in _FAMILY.items()},
    **{f"sample_{name}": (solver, None) for name, solver in _K_DIFFUSION.items()},
    **{name: (solver, None) for name, solver in _COMFYUI.items() if name not in ("euler", "heun")},
    **{name: (solver, None) for name, solver in _A1111.items() if name not in ("Euler", "Heun", "LMS", "Restart")},
    **{
        f"{name} {grid}": (solver, grid.lower())
        for name, solver in _A1111.items()
        for grid in ("Karras", "Exponential")
    },
    **_DIFFUSERS,
    **{
        f"{bare[:-1]}, {option}=True)" if bare.endswith(")") else f"{bare}({option}=True)": (solver, grid)
        for bare, (solver, _) in _DIFFUSERS.items()
        if bare.startswith(("DEIS", "DPMSolver", "EulerDiscrete", "Heun", "KDPM2", "LMS", "UniPC"))
        for option, grid in _DIFFUSERS_GRIDS.items()
    },
}
"""Alias -> (solver, grid or None)."""

REFUSED: dict[str, str] = {
    name: nearest
    for nearest, names in {
        # What they are nearly.
        "dpmpp-2s": "DPMSolverSinglestepScheduler",
        "ddim(eta=1.0)": "euler_ancestral_cfg_pp, LTXEulerAncestralRFScheduler",
        "ddpm": "UnCLIPScheduler",
        "res-2m": "res_multistep_ancestral, res_multistep_cfg_pp, res_multistep_ancestral_cfg_pp",
        "dpm-3s": "dpm_fast, sample_dpm_fast, DPM fast, dpm_adaptive, sample_dpm_adaptive, DPM adaptive",
        "heun(frame='noise')": "heunpp2",
        "ab-2(frame='noise')": "gradient_estimation, gradient_estimation_cfg_pp",
        "ddim": "DDIM CFG++, euler_cfg_pp",
        "dpmpp-2m": "dpmpp_2m_cfg_pp",
        "dpmpp-2s-ancestral": "dpmpp_2s_ancestral_cfg_pp",
    }.items()
    for name in names.split(", ")
}
"""Names of methods that are not offered -> the nearest that is."""

_TOKENS = "tokens, which have no noise levels"
_BACK = "runs from the data to the noise: ds.encode, with any solver"
_SIZES = "runs through several sizes of a video"
PURPOSES: dict[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
    "DDIMInverseScheduler": _BACK,
    "DPMSolverMultistepInverseScheduler": _BACK,
    "HeliosScheduler": _SIZES,
    "HeliosDMDScheduler": _SIZES,
    "ConsistencyDecoderScheduler": "one decoder's two calls, at times of its own: solver='consistency' with grid=[..]",
    "PiflowScheduler": "networks that predict a policy for a whole stretch",
    "RePaintScheduler": "inpainting, by steps that need the picture and its mask",
    "RFD4ProteinaScheduler": "the backbones and latents of one network of proteins",
}
"""Schedulers of diffusers that no solver stands for -> what they are for."""

GRIDS: dict[str, str] = {
    # ComfyUI's schedulers. They are the same to within one row of the model's table, to which some round.
    "simple": "trailing",
    "sgm_uniform": "trailing",
    "normal": "linspace",
    "ddim_uniform": "leading(offset=1)",  # where the steps divide the rows; elsewhere it makes more than asked for
    "kl_optimal": "uniform-theta",  # for models in sigma / alpha
    # The web UI's spelling.
    "SGM Uniform": "trailing",
    "KL Optimal": "uniform-theta",
}
"""Alias of a grid -> the grid."""

REFUSED_GRIDS: dict[str, str] = {
    "linear_quadratic": "polynomial(power=2)",
    "polyexponential": "polynomial(power=1, variable='lambda')",
    "Align Your Steps": "karras",
    "Turbo": "trailing",
}


def aliases() -> dict[str, Alias]:
    """Other libraries' names that `solver=` accepts, each with the solver and the grid (or None) it stands for."""
    return dict(ALIASES)


def expand(spec: str, own: Container[str]) -> Alias:
    """The solver and the grid that an alias stands for; of any other name, the name itself.

    Options of the solver may be added to an alias that has none: "lms-3(lower_final=True)".

    Args:
        own: the names that are no aliases.

    Raises:
        ValueError: for the name of a method that is not offered, naming the nearest that is, or what it is for.
    """
    name = parse("solver", spec)[0]
    for scheduler, purpose in PURPOSES.items():
        if _same(name, scheduler):
            raise ValueError(f"solver={spec!r} is no solver here: it is for {purpose}")
    return _expand("solver", spec, own, ALIASES, REFUSED)


def expand_grid(spec: str, own: Container[str]) -> str:
    """The grid that an alias stands for; of any other name, the name itself.

    Raises:
        ValueError: for the name of a grid that is not offered, naming the nearest that is.
    """
    table: dict[str, Alias] = {name: (grid, None) for name, grid in GRIDS.items()}
    return _expand("grid", spec, own, table, REFUSED_GRIDS)[0]


def _expand(kind: str, spec: str, own: Container[str], table: Mapping[str, Alias], refused: Mapping[str, str]) -> Alias:
    name, options = parse(kind, spec)
    if name in own:
        return spec, None
    for alias, nearest in refused.items():
        if _same(name, alias):
            plus = " with guidance=ds.Guidance(scale, plus=True)" if "cfg" in alias.lower() else ""
            raise ValueError(f"{kind}={spec!r} is not offered; the nearest that is: {nearest!r}{plus}")
    found: Alias | None = None
    for alias, stands_for in table.items():
        alias_name, alias_options = parse(kind, alias)
        if _same(name, alias_name):
            if options == alias_options:
                return stands_for
            if not alias_options:
                found = stands_for
    if found is None:
        return spec, None
    own_name, own_options = parse(kind, found[0])
    merged = ", ".join(f"{key}={value!r}" for key, value in {**own_options, **options}.items())
    return f"{own_name}({merged})", found[1]


def _same(one: str, two: str) -> bool:
    return one.lower().split() == two.lower().split()

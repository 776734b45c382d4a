"""The nodes: a sampler of any solver, grids as SIGMAS, tables and students, unsampling, and the plan of a run as text.

ComfyUI reads a node from its class: INPUT_TYPES are the inputs and widgets, RETURN_TYPES the outputs, FUNCTION the
method to call. Samplers and SIGMAS go into its SamplerCustom and SamplerCustomAdvanced.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffsolve import grids
from diffsolve.integrations.comfyui_models import sigmas_of
from diffsolve.integrations.k_diffusion import plan_of, sampler
from diffsolve.solvers import FlowMap, Solver, named, names
from diffsolve.tableau import Tableau

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

STUDENTS = ("lcm", "tcd", "consistency", "scm", "flow-map")
OPTIONS = ("STRING", {"default": "", "tooltip": "Options of the solver, as eta=0.5, tau=1.0"})
STEPS = ("INT", {"default": 20, "min": 1, "max": 10000})
DENOISE = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01})


def _spec(name: str, options: str) -> str:
    return f"{name}({options})" if options.strip() else name


def _sampler(solver: str | Solver | Tableau, plus: bool = False) -> Any:
    from comfy.samplers import KSAMPLER

    return KSAMPLER(sampler(solver, plus=plus))


def _sampling(model: Any) -> Any:
    return model.get_model_object("model_sampling")


class DiffsolveSampler:
    """Any solver with its options, with CFG++ in the place of guidance or without.

    "heun" without options is ComfyUI's own, as of every name that both have; see `k_diffusion.sampler`.
    """

    RETURN_TYPES: ClassVar = ("SAMPLER",)
    FUNCTION: ClassVar = "sampler"
    CATEGORY: ClassVar = "sampling/custom_sampling/samplers"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inputs that ComfyUI shows."""
        plus = ("BOOLEAN", {"default": False, "tooltip": "CFG++: give the guider a scale near 1"})
        return {
            "required": {"solver": (names(), {"default": "unipc-3"}), "options": OPTIONS},
            "optional": {"cfg_pp": plus},
        }

    def sampler(self, solver: str, options: str, cfg_pp: bool = False) -> tuple[Any]:
        """The sampler.

        Raises:
            ValueError: if the solver or an option is unknown, with a list of the known ones.
        """
        return (_sampler(_spec(solver, options), cfg_pp),)


class DiffsolveScheduler:
    """A grid on the model's own path, as SIGMAS."""

    RETURN_TYPES: ClassVar = ("SIGMAS",)
    FUNCTION: ClassVar = "sigmas"
    CATEGORY: ClassVar = "sampling/custom_sampling/schedulers"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inputs that ComfyUI shows."""
        grid = (grids.names(), {"default": "karras"})
        return {"required": {"model": ("MODEL",), "grid": grid, "options": OPTIONS, "steps": STEPS, "denoise": DENOISE}}

    def sigmas(self, model: Any, grid: str, options: str, steps: int, denoise: float) -> tuple[Tensor]:
        """The sigmas.

        Raises:
            ValueError: if the grid or an option is unknown.
        """
        return (sigmas_of(_sampling(model), _spec(grid, options), steps, denoise),)


class DiffsolveStudent:
    """A few-step student, as LCM or TCD: its sampler, and the SIGMAS that it was trained for."""

    RETURN_TYPES: ClassVar = ("SAMPLER", "SIGMAS")
    FUNCTION: ClassVar = "student"
    CATEGORY: ClassVar = "sampling/custom_sampling/samplers"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inputs that ComfyUI shows."""
        steps = ("INT", {"default": 4, "min": 1, "max": 100})
        return {"required": {"model": ("MODEL",), "student": (list(STUDENTS),), "options": OPTIONS, "steps": steps}}

    def student(self, model: Any, student: str, options: str, steps: int) -> tuple[Any, Tensor]:
        """The sampler and the sigmas.

        Raises:
            ValueError: if an option is unknown.
        """
        solver = named(_spec(student, options))
        assert isinstance(solver, FlowMap)
        return _sampler(solver), sigmas_of(_sampling(model), solver.grid or "karras", steps)


class DiffsolveTable:
    """A table that `ds.tune` has learned, from a file of `Tableau.save`: its sampler, and its SIGMAS."""

    RETURN_TYPES: ClassVar = ("SAMPLER", "SIGMAS")
    FUNCTION: ClassVar = "table"
    CATEGORY: ClassVar = "sampling/custom_sampling/samplers"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inputs that ComfyUI shows: the files of the folder models/diffsolve."""
        import folder_paths

        folder_paths.add_model_folder_path("diffsolve", os.path.join(folder_paths.models_dir, "diffsolve"))
        return {"required": {"file": (folder_paths.get_filename_list("diffsolve"),)}}

    def table(self, file: str) -> tuple[Any, Tensor]:
        """The sampler and the sigmas.

        Raises:
            ValueError: if the file is no table, naming it.
        """
        import folder_paths

        tableau = Tableau.load(folder_paths.get_full_path_or_raise("diffsolve", file))
        return _sampler(tableau), torch.from_numpy(tableau.times.copy()).float()


class DiffsolveUnsampler:
    """From a picture's latent to the noise that a sampler makes it of, and the SIGMAS of the way back.

    SamplerCustom with these and no added noise gives the picture again. Of the sigmas given, a flow's end at `MOST`,
    beyond which ComfyUI loses the latent.
    """

    RETURN_TYPES: ClassVar = ("LATENT", "SIGMAS")
    FUNCTION: ClassVar = "unsample"
    CATEGORY: ClassVar = "sampling/custom_sampling"
    MOST: ClassVar = 0.999

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inputs that ComfyUI shows."""
        cfg = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 100.0, "step": 0.1})
        latent, condition = ("LATENT",), ("CONDITIONING",)
        return {
            "required": {
                "model": ("MODEL",), "positive": condition, "negative": condition, "cfg": cfg, "sampler": ("SAMPLER",),
                "sigmas": ("SIGMAS",), "latent_image": latent,
            }
        }  # fmt: skip

    def unsample(
        self, model: Any, positive: Any, negative: Any, cfg: float, sampler: Any, sigmas: Tensor, latent_image: Any
    ) -> tuple[Any, Tensor]:
        """The latent at the first of the sigmas, and the sigmas."""
        import comfy.sample

        latent = comfy.sample.fix_empty_latent_channels(model, latent_image["samples"])
        rising = sigmas.flip(0).clone()
        if "CONST" in {base.__name__ for base in type(_sampling(model)).__mro__}:
            rising = rising.clamp(max=self.MOST)
        x = comfy.sample.sample_custom(
            model, latent * 0, cfg, sampler, rising, positive, negative, latent, disable_pbar=True, seed=0
        )
        return {**latent_image, "samples": x}, rising.flip(0)


class DiffsolvePlan:
    """The table of a run: what each call of the network is told, and the weights of each step."""

    RETURN_TYPES: ClassVar = ("STRING",)
    FUNCTION: ClassVar = "plan"
    CATEGORY: ClassVar = "sampling/custom_sampling"
    OUTPUT_NODE: ClassVar = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inputs that ComfyUI shows."""
        solver = (names(), {"default": "unipc-3"})
        return {"required": {"model": ("MODEL",), "solver": solver, "options": OPTIONS, "sigmas": ("SIGMAS",)}}

    def plan(self, model: Any, solver: str, options: str, sigmas: Tensor) -> dict[str, Any]:
        """The table as text, shown in the node and handed on.

        Raises:
            ValueError: if the solver or an option is unknown, or the sigmas are no list of steps.
        """
        guider = SimpleNamespace(inner_model=SimpleNamespace(model_patcher=model))
        text = str(plan_of(_spec(solver, options), guider, sigmas))
        return {"ui": {"text": [text]}, "result": (text,)}


_NODES = {
    DiffsolveSampler: "Sampler (diffsolve)",
    DiffsolveScheduler: "Scheduler (diffsolve)",
    DiffsolveStudent: "Student: LCM, TCD, .. (diffsolve)",
    DiffsolveTable: "Learned table (diffsolve)",
    DiffsolveUnsampler: "Unsampler (diffsolve)",
    DiffsolvePlan: "Plan of a run (diffsolve)",
}
NODE_CLASS_MAPPINGS: dict[str, type] = {node.__name__: node for node in _NODES}
NODE_DISPLAY_NAME_MAPPINGS = {node.__name__: shown for node, shown in _NODES.items()}

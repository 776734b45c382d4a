"""diffsolve's node pack for ComfyUI: its solvers and grids in KSampler's lists, and its nodes. See README.md."""

from diffsolve.integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, register

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

register()

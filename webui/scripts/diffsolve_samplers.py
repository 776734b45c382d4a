"""An extension of the web UI (AUTOMATIC1111's and Forge): diffsolve's solvers in the menu of samplers."""

from diffsolve.integrations.webui import register

register()

"""A diffusers pipeline with solvers of this library: one line takes the place of its scheduler."""

import diffusers
import torch
from gallery.style import images, save, subplots

from diffsolve.integrations.diffusers import Scheduler

torch.manual_seed(0)
unet = diffusers.UNet2DModel(
    sample_size=16, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
    down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
)  # fmt: skip
pipe = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler())  # in earnest: DiffusionPipeline.from_pretrained(..)
pipe.set_progress_bar_config(disable=True)
theirs, rows, titles = pipe.scheduler, [], []
for solver in ("ddim", "dpmpp-2m", "unipc-3", "auto"):
    pipe.scheduler = Scheduler(theirs, solver=solver)
    made = pipe(batch_size=8, num_inference_steps=12, generator=torch.Generator().manual_seed(0), output_type="np")
    rows.append(2 * torch.from_numpy(made.images).movedim(-1, 1) - 1)
    titles.append(solver)
figure, (axis,) = subplots(width=4, height=2.2)
images(axis, rows, titles)  # of an untrained network: the same patterns by every solver
save(figure, __file__)

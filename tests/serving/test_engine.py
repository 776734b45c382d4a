"""Models in engines that step requests themselves, and pipelines in many threads."""

import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import diffsolve as ds
from diffsolve.serving import Gathered, StepExecution, ThreadSafe

SHAPE = (1, 4, 4, 4)


@dataclass
class State:
    """The fields of vLLM-Omni's StepRequestState (0.30) that the contract names."""

    request_id: str
    sampling: Any
    prompt: str = ""
    prompt_embeds: torch.Tensor | None = None
    negative_prompt_embeds: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    timesteps: torch.Tensor | None = None
    step_index: int = 0
    scheduler: Any = None
    do_true_cfg: bool = False
    extra: dict = field(default_factory=dict)

    @property
    def current_timestep(self):
        return self.timesteps[self.step_index]

    @property
    def denoise_completed(self):
        return self.step_index >= int(self.timesteps.shape[0])


def runner(pipeline, states):
    """The engine's loop: compatible requests in one batch, one scheduler step for each, in turn."""
    assert pipeline.supports_step_execution
    finished, batches = {}, []
    for state in states:
        assert pipeline.prepare_encode(state) is state
    while states:
        for cfg in (False, True):
            lot = [state for state in states if state.do_true_cfg == cfg]
            if not lot:
                continue
            rows = [state.latents.shape[0] for state in lot]
            batch = SimpleNamespace(
                latents=torch.cat([state.latents for state in lot]),
                timesteps=torch.cat([one.current_timestep.expand(n) for one, n in zip(lot, rows, strict=True)]),
                prompt_embeds=torch.cat([state.prompt_embeds for state in lot]),
                negative_prompt_embeds=torch.cat([state.negative_prompt_embeds for state in lot]) if cfg else None,
                do_true_cfg=cfg, true_cfg_scale=3.0, states=tuple(lot),
            )  # fmt: skip
            batches.append(len(lot))
            out = pipeline.denoise_step(batch, states=lot)
            for state, one in zip(lot, out.split(rows), strict=True):
                pipeline.step_scheduler(state, one)
        for state in [state for state in states if state.denoise_completed]:
            finished[state.request_id] = pipeline.post_decode(state)
            states.remove(state)
    return finished, batches


@pytest.mark.parametrize("solver", ["dpmpp-2m", "unipc-2", "heun", "ddim(eta=1.0)"])
def test_the_four_calls_of_step_execution(solver):
    """Requests of other lengths share batches; each is the run of `ds.sample`, bit for bit."""
    model = ds.adapt(lambda x, t, embeds: 0.5 * x + embeds.view(-1, 1, 1, 1) * t.view(-1, 1, 1, 1), "edm", "edm")

    def encode(state):
        state.prompt_embeds = torch.tensor([float(len(state.prompt))])
        state.negative_prompt_embeds = torch.zeros(1)

    def conditions(batch):
        return {"embeds": batch.prompt_embeds}, {"embeds": batch.negative_prompt_embeds}

    pipeline = StepExecution(model, lambda state: SHAPE, encode, conditions, lambda x: x / 2, solver=solver)
    states = [
        State(
            f"r{i}", SimpleNamespace(num_inference_steps=4 + i, seed=i, true_cfg_scale=3.0), "ab" * i, do_true_cfg=i > 2
        )
        for i in range(5)
    ]
    finished, batches = runner(pipeline, list(states))
    assert batches[:2] == [3, 2]
    for i, state in enumerate(states):
        guidance = ds.Guidance(3.0, uncond={"embeds": torch.zeros(1)}) if i > 2 else None
        cond = {"embeds": torch.tensor([2.0 * i])}
        want = ds.sample(model, SHAPE, solver=solver, steps=4 + i, seed=i, cond=cond, guidance=guidance)
        assert torch.equal(finished[state.request_id], want / 2)


def test_whoever_finds_it_free_makes_the_calls_of_all_who_wait():
    sizes, inside = [], threading.Event()
    gate = threading.Event()

    def function(x, t, scale=None, flag=1):
        sizes.append(len(x))
        inside.set()
        gate.wait(10)
        return {"out": x * t[:, None] + scale, "more": (x[:, 0],)}

    gathered, found = Gathered(function, most=5), {}

    def work(i):
        found[i] = gathered(
            torch.full((1 + i % 2, 3), float(i)), torch.tensor(2.0), scale=torch.full((1 + i % 2, 1), 0.5)
        )

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    threads[0].start()
    assert inside.wait(10)
    for waiting, thread in enumerate(threads[1:], start=1):
        thread.start()
        while len(gathered._waiting) < waiting:  # so that they queue in this order
            time.sleep(0.005)
    gate.set()
    for thread in threads:
        thread.join(10)
    assert sizes[0] == 1
    assert sum(sizes) == 9
    assert max(sizes) == 5
    assert len(sizes) == 3
    for i in range(6):
        torch.testing.assert_close(found[i]["out"], torch.full((1 + i % 2, 3), 2.0 * i + 0.5))
        assert found[i]["more"][0].shape == (1 + i % 2,)


def test_an_error_reaches_who_called_and_the_next_call_works():
    gathered = Gathered(lambda x: x.reshape(7) if x.sum() > 0 else x)
    with pytest.raises(RuntimeError, match="invalid for input"):
        gathered(torch.ones(2, 3))
    assert torch.equal(gathered(torch.zeros(2, 3)), torch.zeros(2, 3))
    with pytest.raises(TypeError, match="the first argument must be a tensor"):
        gathered(3)


class Pipe:
    """As diffusers' pipelines are made: of components, with a scheduler that keeps a place."""

    def __init__(self, unet, scheduler):
        self.unet, self.scheduler = unet, scheduler

    @property
    def components(self):
        return {"unet": self.unet, "scheduler": self.scheduler}

    def __call__(self, start, steps):
        self.scheduler.clear()
        for i in range(steps):
            self.scheduler.append(i)
            start = start + self.unet(start, torch.tensor(float(self.scheduler[-1])), return_dict=False)[0] / steps
        assert self.scheduler == list(range(steps))
        return start


class Unet(torch.nn.Module):
    def forward(self, x, t, return_dict=True):
        return (-x * (1 + t.view(-1, 1)),)


def test_a_pipeline_in_many_threads():
    start = [torch.full((1, 3), float(i)) for i in range(8)]
    pipe = Pipe(Unet(), [])
    want = [Pipe(Unet(), [])(x, 5 + i % 3) for i, x in enumerate(start)]
    safe, found = ThreadSafe(pipe), {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: safe(start[i], 5 + i % 3)})) for i in range(len(start))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for i, x in enumerate(want):
        assert torch.equal(found[i], x)
    assert pipe.scheduler == []
    safe.close()
    assert "forward" not in vars(pipe.unet)
    with pytest.raises(ValueError, match="pipe must be a pipeline with a unet or a transformer"):
        ThreadSafe(object())

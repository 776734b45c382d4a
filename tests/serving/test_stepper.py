"""Many requests in one batch: each gets the bits that it gets alone, whatever the others do."""

import random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import diffsolve as ds
from diffsolve.serving import Served

SOLVERS = ("euler", "dpmpp-2m", "unipc-3", "heun", "rk4", "ddim(eta=1.0)", "deis-3", "sa-3")
SHAPE = (4, 4, 4)


class Net(torch.nn.Module):
    """Of every argument, and not a sum in it: what a row gives does not depend on its batch, to the last bit."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, x, t, shift=None):
        self.sizes.append(len(x))
        y = x * 0.5 - 0.1 * t.to(x).view(-1, 1, 1, 1)
        return y if shift is None else y + shift.to(y).view(-1, 1, 1, 1)


def modelled(path="condot", predicts="velocity", net=None):
    return ds.adapt(Net() if net is None else net, path, predicts)


def request(i):
    """Request i of a mixed lot: the options of its solo run."""
    rng = random.Random(i)
    options = {"solver": SOLVERS[i % len(SOLVERS)], "steps": rng.randint(4, 50), "seed": rng.randrange(2**40)}
    shift = {"shift": torch.tensor(rng.uniform(-1, 1))}
    if i % 3 == 0:
        none = {"shift": torch.tensor(0.25)}
        options["guidance"] = ds.Guidance(rng.uniform(1.5, 4), uncond=none, rescale=0.5 * (i % 2))
    if i % 5 == 1:
        options["guidance"] = ds.Guidance(2.0, uncond={}, interval=(0.3, 2.0))
    return {**options, "cond": shift}


def alone(model, options, shape=SHAPE):
    """The run of one request on its own."""
    options = dict(options)
    for name in ("priority", "deadline", "shape"):
        options.pop(name, None)
    options["cond"] = batched(options.get("cond"))
    if isinstance(options.get("guidance"), ds.Guidance):
        given = options["guidance"]
        options["guidance"] = ds.Guidance(
            given.scale, uncond=batched(given.uncond), interval=given.interval, rescale=given.rescale
        )
    if "noise" in options:
        return ds.sample(model, **{**options, "noise": options["noise"][None]})[0]
    return ds.sample(model, (1, *shape), **options)[0]


def batched(cond):
    return {name: value[None] if isinstance(value, torch.Tensor) else value for name, value in (cond or {}).items()}


def served(stepper, ticket):
    found = stepper.result(ticket)
    assert found.status == (ds.Status.DONE,)
    return found.x


def test_sixty_four_requests_of_eight_solvers():
    """Random admission, cancellation, guidance: every result that is not cancelled is its solo run, bit for bit."""
    model = modelled("vp", "noise")
    stepper, rng = ds.Stepper(model, max_batch=24, max_history=4), random.Random(0)
    waiting, tickets = list(range(64)), {}
    gone = set(rng.sample(range(64), 9))
    while waiting or not stepper.done:
        for _ in range(rng.randint(0, 5)):
            if waiting:
                i = waiting.pop(0)
                tickets[i] = stepper.submit(SHAPE, **request(i), priority=rng.randint(0, 1))
        for i in [i for i in gone if i in tickets and rng.random() < 0.1]:
            stepper.cancel(tickets[i])
        stepper.tick()
    for i, ticket in tickets.items():
        found = stepper.result(ticket)
        if i in gone and found.status == (ds.Status.CANCELLED,):
            continue
        assert found.nfe == ticket.calls == ticket.call
        assert torch.equal(served(stepper, ticket), alone(model, request(i))), request(i)
    assert sum(t.status is ds.Status.CANCELLED for t in tickets.values()) >= 5


def test_one_call_a_tick_and_as_many_ticks_as_the_longest_needs():
    model = modelled()
    stepper, lengths = ds.Stepper(model, max_batch=32), [4, 50, 13, 7, 22]
    none = {"shift": torch.tensor(0.0)}
    for n in lengths:
        stepper.submit(
            SHAPE, solver="ab-2", steps=n, seed=n, cond={"shift": torch.tensor(1.0)}, guidance=ds.Guidance(2.0, none)
        )
    ticks = 0
    while not stepper.done:
        stepper.tick()
        ticks += 1
    assert ticks == 50
    assert model.net.sizes == [2 * sum(n > tick for n in lengths) for tick in range(50)]


def test_rows_of_other_conditions_and_shapes_get_calls_of_their_own():
    model = modelled()
    stepper = ds.Stepper(model)
    shared = ds.Shared(torch.tensor(0.5))
    lot = [
        {"cond": {"shift": torch.tensor(1.0)}},
        {"cond": {"shift": torch.tensor(-1.0)}},
        {"cond": {"shift": shared}},
        {"cond": {"shift": shared}},
        {"cond": {}},
        {"shape": (4, 8, 8)},
    ]
    tickets = [
        stepper.submit(o.pop("shape", SHAPE), solver="dpmpp-2m", steps=6, seed=i, **o)
        for i, o in enumerate(dict(o) for o in lot)
    ]
    stepper.tick()
    assert model.net.sizes == [2, 2, 1, 1]
    stepper.run()
    for i, (o, ticket) in enumerate(zip(lot, tickets, strict=True)):
        o = {"solver": "dpmpp-2m", "steps": 6, "seed": i, **o}
        assert torch.equal(served(stepper, ticket), alone(model, o, o.get("shape", SHAPE)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("path", "predicts", "options"),
    [("edm", "edm", {}), ("vp", "v", {}), ("edm", "edm", {"dtype": torch.bfloat16}), ("condot", "denoised", {})],
)
def test_scaled_inputs_and_networks_of_another_dtype(path, predicts, options, dtype):
    model = ds.adapt(Net(), path, predicts, **options)
    stepper = ds.Stepper(model, dtype=dtype)
    lot = [
        {
            "solver": solver,
            "steps": 5 + i,
            "seed": i,
            "cond": {"shift": torch.tensor(0.3)},
            "guidance": [None, 2.5][i % 2],
        }
        for i, solver in enumerate(("euler", "dpmpp-2m", "unipc-3", "heun", "ddim(eta=1.0)", "reversible-heun"))
    ]
    tickets = [stepper.submit(SHAPE, **options) for options in lot]
    stepper.run()
    for one, ticket in zip(lot, tickets, strict=True):
        assert torch.equal(served(stepper, ticket), alone(model, {**one, "dtype": dtype}))


def test_a_network_told_two_times_jumps_beside_others():
    model = ds.adapt(lambda x, t, s: x * 0.5 - 0.1 * (t - s).view(-1, 1, 1, 1), "condot", "velocity", jumps="straight")
    stepper = ds.Stepper(model)
    lot = [{"solver": "flow-map", "steps": 3, "seed": 0}, {"solver": "tcd", "steps": 4, "seed": 1},
           {"solver": "dpmpp-2m", "steps": 6, "seed": 2}]  # fmt: skip
    tickets = [stepper.submit(SHAPE, **options) for options in lot]
    stepper.run()
    for options, ticket in zip(lot, tickets, strict=True):
        assert torch.equal(served(stepper, ticket), alone(model, options))


def test_from_a_given_state_and_from_part_way():
    model = modelled()
    stepper, start = ds.Stepper(model), torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    lot = [
        {"noise": start, "solver": "heun", "steps": 5, "seed": 1},
        {"noise": start, "start": 0.4, "stop": 0.9, "solver": "dpmpp-2m-sde", "steps": 7, "seed": 2},
        {"noise": start.double(), "solver": ds.plan(model, "unipc-2", steps=6), "seed": 3},
    ]
    tickets = [stepper.submit(**options) for options in lot]
    stepper.run()
    for options, ticket in zip(lot, tickets, strict=True):
        assert torch.equal(served(stepper, ticket), alone(model, {**options, "dtype": torch.float32}))


@pytest.mark.parametrize("solver", ["euler", "dpmpp-2m", "heun"])
def test_a_request_with_an_output_that_is_not_finite_ends_alone(solver):
    """The others finish bitwise, also the one that gets its place."""

    def net(x, t, fault):
        return torch.where(fault.view(-1, 1, 1, 1) & (t.view(-1, 1, 1, 1) > 0.4), torch.nan, 0.5 * x)

    model = modelled(net=net)
    stepper, bad = ds.Stepper(model, max_batch=3), {1, 4}
    lot = [{"solver": solver, "steps": 5 + i, "seed": i, "cond": {"fault": torch.tensor(i in bad)}} for i in range(7)]
    tickets = [stepper.submit(SHAPE, **options) for options in lot]
    stepper.run()
    for i, ticket in enumerate(tickets):
        if i in bad:
            found = stepper.result(ticket)
            assert found.status == (ds.Status.NON_FINITE,)
            assert not found.done
            assert 0 < found.nfe < ticket.calls
            assert "not done: 1 of 1" in repr(found)
        else:
            assert torch.equal(served(stepper, ticket), alone(model, lot[i]))


def test_a_network_that_writes_into_one_buffer():
    """Kind N2: two parts of a batch, and what previews look at, though every output is the same memory."""
    buffers = {}

    def net(x, t, shift=None):
        if x.shape not in buffers:
            buffers[x.shape] = torch.empty_like(x)
        return buffers[x.shape].copy_(0.5 * x + (0 if shift is None else shift.view(-1, 1, 1, 1)))

    model = modelled(net=net)
    plain = modelled(net=lambda x, t, shift=None: 0.5 * x + (0 if shift is None else shift.view(-1, 1, 1, 1)))
    stepper = ds.Stepper(model)
    lot = [{"solver": "unipc-2", "steps": 5 + i, "seed": i, "guidance": 2.0, "cond": {"shift": torch.tensor(float(i))}}
           for i in range(3)]  # fmt: skip
    tickets = [stepper.submit(SHAPE, **options) for options in lot]
    for _ in range(2):
        stepper.tick()
    before = stepper.preview(tickets[0]).clone()
    for buffer in buffers.values():
        buffer.fill_(7.0)  # another user of the network
    assert torch.equal(stepper.preview(tickets[0]), before)
    stepper.run()
    for options, ticket in zip(lot, tickets, strict=True):
        assert torch.equal(served(stepper, ticket), alone(plain, options))


class NoSync(TorchDispatchMode):
    """Raises where a GPU would have to be waited for."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "item")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in str(func) for name in self.FORBIDDEN), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def test_no_host_synchronisation():
    model = modelled("vp", "noise")
    stepper = ds.Stepper(model)
    tickets = [stepper.submit(SHAPE, **{**request(i), "steps": 4 + i % 3}) for i in range(8)]
    with NoSync():
        while not stepper.done:
            stepper.tick()
    for i, ticket in enumerate(tickets):
        want = alone(model, {**request(i), "steps": 4 + i % 3})
        # The mode keeps the compiled loop away, whose noise has other last bits.
        torch.testing.assert_close(served(stepper, ticket), want, rtol=1e-4, atol=1e-4)


def test_a_schedule_of_scales_is_that_of_the_solo_run_and_other_guidance_is_refused():
    model, none = modelled(), {"shift": torch.tensor([0.0])}
    options = {"solver": "dpmpp-2m", "steps": 6, "seed": 3}
    options["guidance"] = ds.Guidance(lambda rho: 4 - 3 / (1 + rho), uncond=none)
    want = ds.sample(model, (1, *SHAPE), **options, cond={"shift": torch.tensor([0.5])})[0]
    stepper = ds.Stepper(model)
    ticket = stepper.submit(SHAPE, **options, cond={"shift": torch.tensor(0.5)})
    stepper.run()
    assert torch.equal(stepper.result(ticket).x, want)
    for name, guidance in {
        "plus=True": ds.Guidance(2.0, plus=True),
        "rule=": ds.Guidance(2.0, rule="apg"),
        "weak=": ds.Guidance(2.0, weak=model.net),
        "perturbed=": ds.Guidance(2.0, perturbed=ds.Perturbed(1.0, cond=none)),
        "scale=": ds.Guidance(torch.tensor([2.0])),
    }.items():
        with pytest.raises(ValueError, match=f"(?s)guidance with {name}.* cannot be given with a Stepper"):
            stepper.submit(SHAPE, solver="ddim", steps=2, guidance=guidance)
    assert stepper.done


def test_previews_are_the_denoised_estimates_of_the_solo_run():
    model, seen = modelled("vp", "noise"), []
    options = {"solver": "dpmpp-2m", "steps": 6, "seed": 3, "guidance": 2.0, "cond": {"shift": torch.tensor(0.5)}}
    ds.sample(model, (1, *SHAPE), **{**options, "cond": batched(options["cond"])}, callback=seen.append)
    stepper = ds.Stepper(model)
    ticket, other = stepper.submit(SHAPE, **options), stepper.submit(SHAPE, solver="euler", steps=9, seed=1)
    assert stepper.preview(ticket) is None
    for i, step in enumerate(seen):
        assert ticket.progress == i / 6
        stepper.tick()
        if not ticket.done:
            torch.testing.assert_close(stepper.preview(ticket), step.denoised[0])
    assert torch.equal(stepper.preview(ticket), stepper.result(ticket).x)
    assert repr(ticket) == "Ticket(0, call 6 of 6, DONE)"
    assert repr(other) == "Ticket(1, call 6 of 9, running)"


def test_who_is_admitted_first_and_who_is_late():
    now = [0.0]
    model = modelled()
    stepper = ds.Stepper(model, max_batch=1, clock=lambda: now[0])
    low, high = (stepper.submit(SHAPE, solver="euler", steps=3, seed=0, priority=p) for p in (0, 1))
    soon, sooner = (stepper.submit(SHAPE, solver="euler", steps=3, seed=0, priority=1, deadline=d) for d in (20, 9))
    order = []
    while not stepper.done:
        now[0] += 2
        order += stepper.tick()
    assert order == [sooner, soon, high, low]
    late, cut = (stepper.submit(SHAPE, solver="euler", steps=30, seed=0, deadline=d) for d in (10, 5))
    while not stepper.done:
        now[0] += 2
        stepper.tick()
    assert cut.status is late.status is ds.Status.DEADLINE
    assert (cut.call, late.call) == (2, 2)
    assert stepper.result(cut).x.shape == SHAPE


def test_what_is_cancelled_waiting_and_running():
    stepper = ds.Stepper(modelled(), max_batch=1)
    runs, waits, last = (stepper.submit(SHAPE, solver="euler", steps=3, seed=i) for i in range(3))
    stepper.tick()
    for ticket in (runs, waits):
        stepper.cancel(ticket)
    assert waits.status is ds.Status.CANCELLED
    assert stepper.result(waits).x is None
    assert repr(stepper.result(waits)) == "Served(not begun, CANCELLED)"
    assert runs.status is None
    with pytest.raises(ValueError, match="ticket must be of a request that has ended, got Ticket"):
        stepper.result(runs)
    assert set(stepper.tick()) == {runs, waits}
    stepper.run()
    assert torch.equal(served(stepper, last), alone(stepper.model, {"solver": "euler", "steps": 3, "seed": 2}))
    stepper.cancel(last)  # too late, and no matter
    assert last.status is ds.Status.DONE


def test_a_network_that_fails_has_moved_nothing():
    calls = [0]

    def net(x, t):
        calls[0] += 1
        if calls[0] == 3:
            raise RuntimeError("out of memory")
        return 0.5 * x

    stepper = ds.Stepper(modelled(net=net))
    ticket = stepper.submit(SHAPE, solver="unipc-2", steps=5, seed=0)
    with pytest.raises(RuntimeError, match="out of memory"):
        stepper.run()
    assert ticket.call == 2
    stepper.run()
    want = alone(modelled(net=lambda x, t: 0.5 * x), {"solver": "unipc-2", "steps": 5, "seed": 0})
    assert torch.equal(served(stepper, ticket), want)


def test_the_result_has_the_face_of_all_results():
    stepper = ds.Stepper(modelled())
    ticket = stepper.submit(SHAPE, solver="euler", nfe=4, seed=5)
    stepper.run()
    found = stepper.result(ticket)
    assert isinstance(found, Served)
    assert isinstance(found, ds.Result)
    assert (found.nfe, found.seed, found.done) == (4, 5, True)
    assert repr(found) == "Served(nfe=4, x=(4, 4, 4) float32, seed=5)"


def test_what_is_refused():
    stepper = ds.Stepper(modelled(), max_batch=1, max_history=2)
    for options, error, match in (
        ({}, ValueError, "exactly one of shape and noise must be given, got none of them"),
        ({"shape": SHAPE}, ValueError, "exactly one of steps and nfe must be given"),
        ({"shape": SHAPE, "noise": torch.ones(3), "nfe": 4}, ValueError, "exactly one of shape and noise"),
        ({"shape": SHAPE, "nfe": 4, "solver": "unipc-3"}, ValueError, "solver must be .* at most max_history=2 pred"),
        ({"shape": SHAPE, "nfe": 4, "solver": "ddim", "guidance": 2.0}, ValueError, "must be .* max_batch=1 rows"),
        ({"shape": SHAPE, "nfe": 4, "seed": [1, 2]}, ValueError, "seed must be one, or 1"),
        ({"shape": SHAPE, "nfe": 4, "solver": "ddim", "start": 0.5}, ValueError, "noise must be given with start=0.5"),
        ({"shape": SHAPE, "nfe": 4, "solver": "ddim", "deadline": 0}, ValueError, "deadline must be a finite number >"),
        ({"shape": (-1,), "nfe": 4, "solver": "ddim"}, ValueError, r"shape\[0\] must be an integer"),
        ({"noise": [1.0], "nfe": 4, "solver": "ddim"}, TypeError, "noise must be a floating tensor"),
    ):
        with pytest.raises(error, match=match):
            stepper.submit(**options)
    assert stepper.done
    with pytest.raises(TypeError, match="ticket must be a Ticket, got 3"):
        stepper.result(3)
    with pytest.raises(ValueError, match="max_batch must be an integer >= 1, got 0"):
        ds.Stepper(modelled(), max_batch=0)

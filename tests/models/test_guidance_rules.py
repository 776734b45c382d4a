"""Rules of guidance against diffusers' guiders, streams of other networks, scales per call and sample, momentum."""

import pytest
import torch

import diffsolve as ds
from diffsolve.common.tensors import per_sample
from diffsolve.guidance.frequencies import pyramid

SHAPE = (3, 2, 8, 8)


def random(count, shape=SHAPE):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(count)]


def outputs_net(table):
    """A network whose output for call t and condition k is an entry of a table."""

    def net(x, t, k="u"):
        return table[k] * (1 + per_sample(t.double(), x))

    return net


def guided(c, u, guidance, calls=1, third=None):
    """What a run of so many calls combines, call by call, of outputs (1 + t) c and (1 + t) u."""
    seen = []
    model = ds.adapt(outputs_net({"c": c, "u": u, "p": third}), "condot", "velocity")
    outputs = guidance.outputs(model, ds.plan(model, "euler", grid=torch.linspace(0, 1, calls + 1).tolist()))
    for i in range(calls):
        t = torch.full((len(c),), i / calls, dtype=torch.float64)
        out = outputs(i, torch.zeros_like(c), t, {"k": "c"})
        seen.append(out if isinstance(out, torch.Tensor) else out.tensor())
    return seen


def theirs(name, c, u, calls=1, third=None, **options):
    """The same from a guider of diffusers."""
    guiders = pytest.importorskip("diffusers.guiders")
    guider, seen = getattr(guiders, name)(**options), []
    for i in range(calls):
        guider.set_state(i, calls, torch.tensor(i))
        guider.prepare_inputs({"x": (c, u)})
        rest = () if third is None else ((1 + i / calls) * third,)
        seen.append(guider.forward((1 + i / calls) * c, (1 + i / calls) * u, *rest).pred)
    return seen


APG = {"guidance_scale": 5.0, "eta": 0.3, "adaptive_projected_guidance_rescale": 8.0}
GUIDERS = {
    "cfg": ("ClassifierFreeGuidance", {"guidance_scale": 5.0}, ds.Guidance(5.0), 1),
    "rescaled": (
        "ClassifierFreeGuidance", {"guidance_scale": 5.0, "guidance_rescale": 0.7}, ds.Guidance(5.0, rescale=0.7), 1,
    ),
    "apg": (
        "AdaptiveProjectedGuidance", APG | {"adaptive_projected_guidance_momentum": -0.5},
        ds.Guidance(5.0, rule="apg(eta=0.3, momentum=-0.5, threshold=8, base='uncond')"), 4,
    ),
    "apg of the paper": (
        "AdaptiveProjectedGuidance", APG | {"guidance_scale": 4.0, "use_original_formulation": True},
        ds.Guidance(5.0, rule="apg(eta=0.3, threshold=8)"), 2,
    ),
    "apg after cfg": (
        "AdaptiveProjectedMixGuidance",
        {"guidance_scale": 3.0, "adaptive_projected_guidance_start_step": 1, "guidance_rescale": 0.5},
        ds.Guidance(
            3.0, rescale=0.5, rule="apg(momentum=-0.5, threshold=10, base='uncond', after=1, scale=10.0)"
        ),
        5,
    ),
    "cfg-zero": (
        "ClassifierFreeZeroStarGuidance", {"guidance_scale": 5.0, "zero_init_steps": 2},
        ds.Guidance(5.0, rule="cfg-zero(zero=2)"), 4,
    ),
    "tcfg": ("TangentialClassifierFreeGuidance", {"guidance_scale": 5.0}, ds.Guidance(5.0, rule="tcfg"), 2),
    "mambo-g": (
        "MagnitudeAwareGuidance", {"guidance_scale": 5.0, "alpha": 2.0}, ds.Guidance(5.0, rule="mambo-g(alpha=2)"), 2,
    ),
    "fdg": (
        "FrequencyDecoupledGuidance",
        {"guidance_scales": [10.0, 5.0, 2.5], "parallel_weights": [1.0, 0.4, 0.0]},
        ds.Guidance(10.0, rule="fdg(factors=(1, 0.5, 0.25), parallel=(1, 0.4, 0))"), 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GUIDERS)
def test_a_rule_is_the_guider_of_diffusers(name, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # its singular vectors are taken in float32
    kind, options, guidance, calls = GUIDERS[name]
    if name == "fdg":
        pytest.importorskip("kornia")
    c, u = random(2, {"mambo-g": (3, 8, 8), "fdg": (3, 2, 16, 16)}.get(name, SHAPE))  # theirs has a matrix norm
    for ours, other in zip(guided(c, u, guidance, calls), theirs(kind, c, u, calls, **options), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "scaled", "name"),
    [
        ("PerturbedAttentionGuidance", "perturbed_guidance_scale", "perturbed_guidance"),
        ("SmoothedEnergyGuidance", "seg_guidance_scale", "seg_guidance"),
        ("SkipLayerGuidance", "skip_layer_guidance_scale", "skip_layer_guidance"),
    ],
)
def test_a_third_stream_is_that_of_diffusers(kind, scaled, name):
    """PAG, SEG and SLG are one formula there; alone, their scale counts one more."""
    c, u, third = random(3)
    perturbed = ds.Perturbed(2.0, cond={"k": "p"})
    layers = {f"{name}_layers": [0], f"{name}_start": 0.0, f"{name}_stop": 1.0}
    for w, scale in ((5.0, 2.0), (1.0, 3.0)):
        ours = guided(c, u, ds.Guidance(w, perturbed=perturbed), 2, third)
        other = theirs(kind, c, u, 2, third, guidance_scale=w, **{scaled: scale}, **layers)  # not in the first call
        torch.testing.assert_close(ours[1], other[1], rtol=1e-6, atol=1e-6)
    (near,) = guided(c, u, ds.Guidance(-1.0, perturbed=perturbed), third=third)  # where the two scales make 1
    torch.testing.assert_close(near, u - (c - u) + 2 * (c - third))


def test_a_weaker_network_is_the_auto_guidance_of_diffusers():
    """There the same network with layers dropped; here any other."""
    c, weak = random(2)
    model = ds.adapt(outputs_net({"u": c}), "condot", "velocity")
    guidance = ds.Guidance(3.0, weak=outputs_net({"u": weak}))
    outputs = guidance.outputs(model, ds.plan(model, "euler", steps=1))
    ours = outputs(0, torch.zeros_like(c), torch.zeros(len(c), dtype=torch.float64), {})
    (other,) = theirs("AutoGuidance", c, weak, guidance_scale=3.0, auto_guidance_layers=[0], dropout=0.5)
    torch.testing.assert_close(ours if isinstance(ours, torch.Tensor) else ours.tensor(), other, rtol=1e-6, atol=1e-6)


def test_a_pyramid_is_its_image():
    (x,) = random(1, (2, 3, 13, 16))
    levels = pyramid(x, 3)
    assert [tuple(level.shape[2:]) for level in levels] == [(13, 16), (6, 8), (3, 4)]
    assert pyramid(torch.ones_like(x), 2)[0].abs().max() < 1e-12  # a constant is of the lowest frequency
    c, u = random(2)
    (plain,) = guided(c, u, ds.Guidance(5.0, rule="fdg(factors=(1, 1))"))
    torch.testing.assert_close(plain, u + 5 * (c - u))
    (low,) = guided(c, u, ds.Guidance(5.0, rule="fdg(factors=(1, 0.4))"))
    coarse = [pyramid(out, 2)[1] for out in (c, u)]
    at_low = u + 5 * (c - u) - low
    torch.testing.assert_close(pyramid(at_low, 2)[1].mean(), (3 * (coarse[0] - coarse[1])).mean(), rtol=0.2, atol=0.05)
    with pytest.raises(ValueError, match=r"shape must be \(B, C, H, W\), an image that can be halved 1 times"):
        guided(*random(2, (3, 2, 2, 2)), ds.Guidance(5.0, rule="fdg"))


def net(x, t, shift=0.0):
    return -x.tanh() + shift + 0.1 * t.view(-1, 1).to(x)


MODEL = ds.adapt(net, "condot", "velocity")
COND = {"shift": torch.tensor([[1.0], [0.3], [-0.5]])}
RUN = {"shape": (3, 2), "steps": 6, "seed": 0, "cond": COND}
WAYS = {
    "in order": {"solver": "ddim"},
    "parallel": {"solver": "ddim", "parallel": ds.Picard(window=4, tol=1e-9)},
    "gradient": {"solver": "ddim", "gradient": "direct"},
}


@pytest.mark.parametrize("way", WAYS)
def test_scales_per_sample_and_per_call(way):
    options = {**RUN, **WAYS[way]}
    each = torch.tensor([3.0, 1.0, 2.0])
    x = ds.solve(MODEL, guidance=ds.Guidance(each), **options).x
    for i, w in enumerate(each.tolist()):
        torch.testing.assert_close(x[i], ds.solve(MODEL, guidance=w, **options).x[i], atol=1e-5, rtol=1e-5)

    def schedule(rho):
        return 1 + 2 / (1 + rho)

    x = ds.solve(MODEL, guidance=ds.Guidance(schedule), **options).x
    rho = ds.plan(MODEL, "ddim", steps=6).calls
    scales = schedule(rho[:, 2] / rho[:, 1].clip(1e-300))
    table = iter(scales.tolist())

    def by_hand(x, t):
        u = net(x, t)
        return u + next(table) * (net(x, t, COND["shift"]) - u)

    hand = ds.sample(ds.adapt(by_hand, "condot", "velocity"), (3, 2), steps=6, seed=0, solver="ddim")
    torch.testing.assert_close(x, hand, atol=1e-5, rtol=1e-5)


def test_an_adaptive_solver_has_scales_per_sample():
    each = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    options = {**RUN, "solver": ds.Adaptive(rtol=1e-6, atol=1e-6)}
    del options["steps"]
    x = ds.solve(MODEL, guidance=ds.Guidance(each), **options).x
    for i, w in enumerate(each.tolist()):
        torch.testing.assert_close(x[i], ds.solve(MODEL, guidance=w, **options).x[i], atol=1e-4, rtol=1e-4)


def test_autoguidance_is_the_same_condition_of_a_weaker_network():
    def weak(x, t, shift=0.0):
        return -0.5 * x + shift

    def by_hand(x, t, shift):
        return weak(x, t, shift) + 2 * (net(x, t, shift) - weak(x, t, shift))

    options = {**RUN, "solver": "dpmpp-2m"}
    x = ds.solve(MODEL, guidance=ds.Guidance(2.0, weak=weak), **options).x
    torch.testing.assert_close(x, ds.solve(ds.adapt(by_hand, "condot", "velocity"), **options).x)


def test_momentum_is_part_of_the_state(tmp_path):
    options = {**RUN, "solver": "dpmpp-2m", "guidance": ds.Guidance(3.0, rule="apg(momentum=-0.7)")}
    whole = ds.solve(MODEL, **options)
    part = ds.solve(MODEL, **options, max_calls=3)
    part.state.save(tmp_path / "state")
    rest = {"solver": part.tableau, "cond": COND, "guidance": options["guidance"]}
    assert torch.equal(ds.solve(MODEL, state=ds.State.load(tmp_path / "state"), **rest).x, whole.x)
    assert not torch.equal(whole.x, ds.solve(MODEL, **{**options, "guidance": ds.Guidance(3.0, rule="apg")}).x)


def test_a_density_refuses_what_needs_all_samples_in_step():
    with pytest.raises(ValueError, match="guidance with plus=True cannot be given with"):
        ds.log_prob(MODEL, torch.zeros(1, 2), guidance=ds.Guidance(2.0, plus=True))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ds.Guidance(torch.tensor(2.0)), r"scale must be finite and floating, of shape \(B,\), .* shape \(\)"),
        (lambda: ds.Guidance(2.0, rule="apg(eta='x')"), "eta must be a finite number, got 'x'"),
        (lambda: ds.Guidance(2.0, rule="best"), "rule must be one of 'apg', .*, got 'best'"),
        (lambda: ds.Guidance(2.0, weak=3), "weak must be a network, got 3"),
        (lambda: ds.Guidance(2.0, weak=net, batched=True), "batched must be False with a weak network, got True"),
        (lambda: ds.Guidance(2.0, perturbed=3.0), "perturbed must be a ds.Perturbed, got 3.0"),
        (lambda: ds.Perturbed(2.0), "cond must be what perturbs the network, without net=, got {}"),
        (lambda: ds.Guidance(2.0, plus=1), "plus must be True or False, got 1"),
        (
            lambda: ds.solve(MODEL, guidance=ds.Guidance(lambda rho: 2.0), solver="ddim", **RUN),
            r"what scale returns must be as many finite scales as levels, \(1,\)",
        ),
        (
            lambda: ds.solve(MODEL, guidance=ds.Guidance(lambda rho: rho), solver="ddim", **RUN),
            r"what scale returns must be as many finite scales as levels, \(6,\)",
        ),
        (lambda: ds.solve(MODEL, guidance=ds.Guidance(torch.ones(2)), solver="ddim", **RUN), "one per sample .*, 3"),
    ],
)
def test_errors_name_what_is_wrong(make, says):
    with pytest.raises((ValueError, TypeError), match=says):
        make()

"""What a sampling function gets from ComfyUI, in small, and its samplers as plain recursions in our words.

A recursion is `run(host, x, sigmas, z)`: `host.pair(x, sigma)` is the guided and the unconditional denoised, `z(row)`
the normals of that row of the table.
"""

import math
from types import SimpleNamespace

import numpy as np
import torch
from scipy.integrate import quad


class Host:
    """ComfyUI's guider: a denoiser that hands its two outputs to the functions asked for, and knows its sampling."""

    def __init__(self, flow):
        kind = type("Sampling", (type("CONST" if flow else "EPS", (), {}),), {})
        self.sampling, self.flow = kind(), flow
        self.sampling.percent_to_sigma = lambda share: 1 - share if flow else 14 ** (1 - 2 * share)
        self.inner_model = SimpleNamespace(model_patcher=SimpleNamespace(get_model_object=lambda name: self.sampling))
        self.asked = []

    def pair(self, x, sigma):
        """D of N(1/2, 1/2), bent, and another."""
        alpha = 1 - sigma if self.flow else 1.0
        share = 0.5 / (0.5 * alpha**2 + sigma**2)
        guided = 0.5 + alpha * share * (x - alpha / 2) + 0.1 * torch.tanh(x - alpha) * share
        return guided, 0.8 * guided - 0.1 * torch.sin(x)

    def __call__(self, x, sigma, model_options=None, seed=None):
        self.asked.append(float(sigma[0]))
        guided, plain = self.pair(x, float(sigma[0]))
        options = model_options or {}
        if not options.get("disable_cfg1_optimization"):  # at scale 1 it is not called
            plain = torch.zeros_like(plain)
        for function in options.get("sampler_post_cfg_function", []):
            guided = function({"denoised": guided, "uncond_denoised": plain})
        return guided

    def D(self, x, sigma):
        return self.pair(x, sigma)[0]


def steps(sigmas):
    return list(enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)))


def ancestral(s, t, eta=1.0):
    up = eta * t * math.sqrt(1 - t**2 / s**2)
    return math.sqrt(t**2 - up**2), up


def heunpp2(host, x, sigmas, z):
    for i, (s, t) in steps(sigmas):
        stages, at = [], x
        for sigma, after in list(zip(sigmas[i:-1], sigmas[i + 1 :], strict=True))[:3]:
            stages.append((at - host.D(at, sigma)) / sigma)
            at = at + (after - sigma) * stages[-1]
        later = [sigma / (len(stages) * sigmas[0]) for sigma in sigmas[i + 1 : i + len(stages)]]
        x = x + (t - s) * sum(w * d for w, d in zip([1 - sum(later), *later], stages, strict=True))
    return x


def gradient_estimation(host, x, sigmas, z):
    before = None
    for _, (s, t) in steps(sigmas):
        d = (x - host.D(x, s)) / s
        used = d if before is None or t == 0 else 2 * d - before
        x, before = x + (t - s) * used, d
    return x


def deis(host, x, sigmas, z):
    """Three values of eps, their polynomial in the time of a VP path, integrated over sigma."""
    low, high = math.log(1 + 0.002**2), math.log(1 + 80**2)
    rise = 2 * (low / 1e-3 - high) / (1e-3 - 1)
    least = high - rise / 2
    time = lambda sigma: (math.sqrt(least**2 + 2 * rise * math.log(1 + sigma**2)) - least) / rise  # noqa: E731
    past = []
    for _, (s, t) in steps(sigmas):
        past = [(time(s), (x - host.D(x, s)) / s), *past][:3]
        if t == 0:
            return host.D(x, s)
        new = x
        for j, (at, eps) in enumerate(past):
            others = [other for k, (other, _) in enumerate(past) if k != j]
            basis = lambda sigma, at=at, others=others: math.prod((time(sigma) - o) / (at - o) for o in others)  # noqa: E731
            new = new + quad(basis, s, t, epsrel=1e-12)[0] * eps
        x = new
    return x


def _rho(host, sigma):
    return sigma / (1 - sigma) if host.flow else sigma


def _alpha(host, sigma):
    return 1 - sigma if host.flow else 1.0


def er_sde(host, x, sigmas, z):
    sigmas = [host.sampling.percent_to_sigma(1e-4) if host.flow and sigmas[0] == 1 else sigmas[0], *sigmas[1:]]
    phi = lambda rho: rho * (np.exp(rho**0.3) + 10)  # noqa: E731
    rhos = [_rho(host, sigma) for sigma in sigmas]
    values = []
    for i, (s, t) in steps(sigmas):
        values.append(host.D(x, s))
        if t == 0:
            return values[-1]
        (high, low), a = rhos[i : i + 2], _alpha(host, t)
        ratio = phi(low) / phi(high)
        y = x / _alpha(host, s)
        new = ratio * y + (1 - ratio) * values[-1]
        width = (high - low) / 200
        inner = low + width * np.arange(200)
        if i >= 1:
            one = (values[-1] - values[-2]) / (high - rhos[i - 1])
            new = new + (low - high + phi(low) * float((width / phi(inner)).sum())) * one
        if i >= 2:
            two = 2 * (one - (values[-2] - values[-3]) / (rhos[i - 1] - rhos[i - 2])) / (high - rhos[i - 2])
            integral = float((width * (inner - high) / phi(inner)).sum())
            new = new + ((high - low) ** 2 / 2 + phi(low) * integral) * two
        x = a * (new + math.sqrt(low**2 - (high * ratio) ** 2) * z(i))
    return x


def _adams(nodes, values, start, stop, tau):
    """The integral of SA-Solver's polynomial of D in lambda, in units of alpha."""
    rate, total = 1 + tau**2, 0.0
    for j, value in enumerate(values):
        others = [o for k, o in enumerate(nodes) if k != j]
        basis = lambda v, at=nodes[j], others=others: (  # noqa: E731
            rate * math.exp(-rate * (stop - v)) * math.prod((v - o) / (at - o) for o in others)
        )
        total = total + quad(basis, start, stop, epsabs=0, epsrel=1e-12)[0] * value
    return total


def sa(pece):
    def run(host, x, sigmas, z):
        sigmas = [host.sampling.percent_to_sigma(1e-4) if host.flow and sigmas[0] == 1 else sigmas[0], *sigmas[1:]]
        n, row = len(sigmas) - 1, 0
        lam = [-math.log(_rho(host, s)) if s else math.inf for s in sigmas]
        noisy = [host.sampling.percent_to_sigma(0.2) >= t >= host.sampling.percent_to_sigma(0.8) for t in sigmas]
        values, state, tau, noise, h = [], x, 0.0, 0.0, 0.0
        for i, (s, t) in steps(sigmas):
            values.insert(0, host.D(x, s))
            row += 1
            count = 0 if i == 0 or (t == 0 and not pece) else min(4, i + 1, n - i)
            if count:
                back = lam[i - 1]
                moved = _adams([lam[i - k] for k in range(count)], values[:count], back, lam[i], tau)
                state = s / sigmas[i - 1] * math.exp(-(tau**2) * h) * state + _alpha(host, s) * moved + noise
                if pece:
                    values[0] = host.D(state, s)
                    row += 1
            else:
                state = x
            if t == 0:
                return values[0]
            tau, count, h = float(noisy[i + 1]), min(3, i + 1, n - 1 - i), lam[i + 1] - lam[i]
            moved = _adams([lam[i - k] for k in range(count)], values[:count], lam[i], lam[i + 1], tau)
            noise = t * math.sqrt(-math.expm1(-2 * tau**2 * h)) * z(row - 1) if tau else 0.0
            x = t / s * math.exp(-(tau**2) * h) * state + _alpha(host, t) * moved + noise
        return x

    return run


def res(eta, plus):
    """res_multistep_ancestral and the two res_multistep_cfg_pp."""

    def run(host, x, sigmas, z):
        before = None  # sigma, its sigma_down, D
        for i, (s, t) in steps(sigmas):
            guided, plain = host.pair(x, s)
            used = plain if plus else guided
            down, up = ancestral(s, t, eta)
            if before is None or down == 0:
                x = guided + down / s * (x - used)
            else:
                h = math.log(s / down)
                c2 = math.log(before[1] / before[0]) / h
                one = -math.expm1(-h) / h
                two = (1 - one) / h
                x = x + guided - plain if plus else x
                x = math.exp(-h) * x + h * ((one - two / c2) * used + two / c2 * before[2])
            if up:
                x = x + up * z(2 * i + 1 if plus else i)
            before = s, down, used
        return x

    return run


def dpmpp_2m_cfg_pp(host, x, sigmas, z):
    before = None
    for i, (s, t) in steps(sigmas):
        guided, plain = host.pair(x, s)
        r = t / s
        new = guided + r * (x - plain)
        if before is not None and t:
            new = new + (1 - r) * math.log(s / t) / (2 * math.log(sigmas[i - 1] / s)) * (guided - before)
        x, before = new, plain
    return x


def gradient_estimation_cfg_pp(host, x, sigmas, z):
    before = None
    for _, (s, t) in steps(sigmas):
        guided, plain = host.pair(x, s)
        eps = (x - plain) / s
        x = guided + t * eps + (0.0 if before is None or t == 0 else (t - s) * (eps - before))
        before = eps
    return x


def euler_cfg_pp(eta):
    def run(host, x, sigmas, z):
        for i, (s, t) in steps(sigmas):
            guided, plain = host.pair(x, s)
            eps = (x - _alpha(host, s) * plain) / s
            a = _alpha(host, t)
            down, up = (
                (0.0, t / a)
                if _alpha(host, s) == 0 and eta
                else ancestral(math.inf if _alpha(host, s) == 0 else _rho(host, s), _rho(host, t), eta)
            )
            x = a * guided + a * down * eps + (a * up * z(i) if up else 0.0)
        return x

    return run


def dpmpp_2s_ancestral_cfg_pp(host, x, sigmas, z):
    for i, (s, t) in steps(sigmas):
        guided, plain = host.pair(x, s)
        if t == 0:
            return guided
        down, up = ancestral(s, t)
        middle = math.sqrt(s * down)
        y = middle / s * (x + guided - plain) + (1 - middle / s) * guided
        second, plain = host.pair(y, middle)
        x = down / s * (x + guided - plain) + (1 - down / s) * second + up * z(4 * i + 3)
    return x


def flow_ancestral(kind):
    def run(host, x, sigmas, z):
        for i, (s, t) in steps(sigmas):
            if t == 0:
                return host.D(x, s)
            down = t * t / s
            row = i
            if kind == "euler":
                x = down / s * x + (1 - down / s) * host.D(x, s)
            else:
                row = 2 * i + 1
                middle = math.sqrt(s * down)
                if kind == "dpmpp-2s":
                    lam = math.log((1 - s) / s) / 2 + math.log((1 - down) / down) / 2 if s < 1 else None
                    middle = 0.9999 if lam is None else 1 / (1 + math.exp(lam))
                y = middle / s * x + (1 - middle / s) * host.D(x, s)
                d = host.D(y, middle)
                x = down / s * x + (1 - down / s) * d if kind == "dpmpp-2s" else x + (down - s) * (y - d) / middle
            up = (1 - t) / (1 - down)
            x = up * x + math.sqrt(t**2 - (up * down) ** 2) * z(row)
        return x

    return run


def ddpm(host, x, sigmas, z):
    for i, (s, t) in steps(sigmas):
        D, share = host.D(x, s), (t / s) ** 2
        x = share * x + (1 - share) * D + (t * math.sqrt(1 - share) * z(i) if t else 0.0)
    return x


def lcm(host, x, sigmas, z):
    for i, (s, t) in steps(sigmas):
        x = host.D(x, s)
        if t:
            x = _alpha(host, t) * x + t * z(i)
    return x


def exp_heun(tau):
    def run(host, x, sigmas, z):
        sigmas = [host.sampling.percent_to_sigma(1e-4) if host.flow and sigmas[0] == 1 else sigmas[0], *sigmas[1:]]
        for i, (s, t) in steps(sigmas):
            D = host.D(x, s)
            if t == 0:
                return D
            h = math.log(_rho(host, s) / _rho(host, t))
            g, a = h * (1 + tau), _alpha(host, t)
            noise = t * math.sqrt(-math.expm1(-2 * tau * h)) * z(2 * i) if tau else 0.0
            start = t / s * math.exp(-tau * h) * x + noise
            second = host.D(start - a * math.expm1(-g) * D, t)
            share = (math.exp(-g) - 1 + g) / g
            x = start - a * math.expm1(-g) * D + a * share * (second - D)
        return x

    return run


RECURSIONS = {
    "heunpp2": heunpp2, "gradient_estimation": gradient_estimation, "deis": deis, "er_sde": er_sde,
    "sa_solver": sa(False), "sa_solver_pece": sa(True), "res_multistep_ancestral": res(1.0, False),
    "res_multistep_cfg_pp": res(0.0, True), "res_multistep_ancestral_cfg_pp": res(1.0, True),
    "dpmpp_2m_cfg_pp": dpmpp_2m_cfg_pp, "gradient_estimation_cfg_pp": gradient_estimation_cfg_pp,
    "euler_cfg_pp": euler_cfg_pp(0.0), "euler_ancestral_cfg_pp": euler_cfg_pp(1.0),
    "dpmpp_2s_ancestral_cfg_pp": dpmpp_2s_ancestral_cfg_pp, "ddpm": ddpm, "lcm": lcm,
    "exp_heun_2_x0": exp_heun(0.0), "exp_heun_2_x0_sde": exp_heun(1.0),
}  # fmt: skip
OF_FLOWS = {
    "euler_ancestral": flow_ancestral("euler"), "dpm_2_ancestral": flow_ancestral("dpm-2s"),
    "dpmpp_2s_ancestral": flow_ancestral("dpmpp-2s"),
}  # fmt: skip
"""Those that are other methods on flows."""

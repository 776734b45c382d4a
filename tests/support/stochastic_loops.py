"""The stochastic solvers as the plain loops of their papers: `noise(i)` is the normal of call i, -1 of the start."""

import math

import numpy as np
from scipy.integrate import quad


def lagrange(nodes, j):
    """The polynomial that is 1 at node j and 0 at the others."""
    others = [node for k, node in enumerate(nodes) if k != j]
    return np.poly1d(others, r=True) / math.prod(nodes[j] - node for node in others)


def _from_noise(sched, D, x, s, t, z):
    """Out of alpha = 0 an SDE that renews all noise forgets x."""
    a, sig = sched(t)
    return a * D(x, s) + sig * z


def ddpm(large):
    def run(sched, D, x, times, noise=None):
        for i, (s, t) in enumerate(zip(times, times[1:], strict=False)):
            (a_s, s_s), (a_t, s_t) = sched(s), sched(t)
            forward = a_s / a_t
            beta = s_s**2 - (forward * s_t) ** 2
            mean = forward * (s_t / s_s) ** 2 * x + a_t * beta / s_s**2 * D(x, s)
            x = mean if s_t == 0 else mean + math.sqrt(beta if large else beta * s_t**2 / s_s**2) * noise(i)
        return x

    return run


def sa(points, corrector, tau):
    """SA-Solver, 2309.05019, algorithm 1, its integrals by adaptive quadrature."""

    def run(sched, D, x, times, noise=None):
        rate = 1 + tau**2
        lams, values, before = [], [], None  # newest first; before: (x, z, s) of the last step

        def coefficients(nodes, start, stop, a_t):
            def weight(basis):
                inner = lambda v: math.exp(-rate * (stop - v)) * basis(v)  # noqa: E731
                return a_t * rate * quad(inner, start, stop, epsabs=0, epsrel=1e-13)[0]

            return [weight(lagrange(nodes, j)) for j in range(len(nodes))]

        def decay(s, t):
            h = sched.lam(t) - sched.lam(s)
            return sched(t)[1] / sched(s)[1] * math.exp(-(tau**2) * h), sched(t)[1] * math.sqrt(
                -math.expm1(-2 * tau**2 * h)
            )

        for i, (s, t) in enumerate(zip(times, times[1:], strict=False)):
            value, lam = D(x, s), sched.lam(s)
            if math.isfinite(lam):
                lams.insert(0, lam)
                values.insert(0, value)
            if before and corrector and len(lams) > 1:
                old, z, r, count = before
                ratio, std = decay(r, s)
                take = max(2, corrector - points + count)
                b = coefficients(lams[:take], sched.lam(r), lam, sched(s)[0])
                x = ratio * old + sum(w * m for w, m in zip(b, values, strict=False)) + std * z
            z = noise(i)
            if sched(t)[1] == 0:
                x = value
                continue
            if not math.isfinite(lam):
                x, before = _from_noise(sched, D, x, s, t, z), None
                continue
            ratio, std = decay(s, t)
            b = coefficients(lams[:points], lam, sched.lam(t), sched(t)[0])
            before = (x, z, s, points)
            x = ratio * x + sum(w * m for w, m in zip(b, values, strict=False)) + std * z
        return x

    return run


def multistep_sde(points, eta):
    """k-diffusion's dpmpp_2m_sde (midpoint) and dpmpp_3m_sde, in sigma / alpha."""

    def run(sched, D, x, times, noise=None):
        values, hs = [], []
        for i, (s, t) in enumerate(zip(times, times[1:], strict=False)):
            (a_s, s_s), (a_t, s_t) = sched(s), sched(t)
            value = D(x, s)
            if s_t == 0:
                x = value
                continue
            if a_s == 0:
                x = _from_noise(sched, D, x, s, t, noise(i))
                continue
            h = sched.lam(t) - sched.lam(s)
            full = h * (eta + 1)
            y = s_t / a_t / (s_s / a_s) * math.exp(-eta * h) * x / a_s - math.expm1(-full) * value
            if points == 2 and hs:
                y = y - 0.5 * math.expm1(-full) * h / hs[-1] * (value - values[-1])
            if points == 3 and len(hs) == 1:  # here algorithm 2 of 2211.01095, where k-diffusion has phi_2
                y = y - 0.5 * math.expm1(-full) * h / hs[-1] * (value - values[-1])
            if points == 3 and len(hs) > 1:
                r0, r1 = hs[-1] / h, hs[-2] / h
                one, two = (value - values[-1]) / r0, (values[-1] - values[-2]) / r1
                d1 = one + (one - two) * r0 / (r0 + r1)
                d2 = (one - two) / (r0 + r1)
                phi2 = math.expm1(-full) / full + 1
                phi3 = phi2 / full - 0.5
                y = y + phi2 * d1 - phi3 * d2
            y = y + s_t / a_t * math.sqrt(-math.expm1(-2 * eta * h)) * noise(i)
            x = a_t * y
            values.append(value)
            hs.append(h)
        return x

    return run


def seeds(stages, eta):
    """SEEDS-2 and 3 with data prediction: the stages of a step share one Brownian path."""

    def run(sched, D, x, times, noise=None):
        path, call = sched.path, 0
        for s, t in zip(times, times[1:], strict=False):
            (a_s, s_s), (a_t, s_t) = sched(s), sched(t)
            if s_t == 0 or t == path.t_data or a_s == 0:
                x = D(x, s) if s_t == 0 else _from_noise(sched, D, x, s, t, noise(call))
                call += 1
                continue
            lam, h = sched.lam(s), sched.lam(t) - sched.lam(s)
            ratios = {2: [0.5], 3: [1 / 3, 2 / 3]}[stages]
            first, outputs, made, reached, wiener = D(x, s), [], [], 0.0, 0.0
            for r in [*ratios, 1.0]:
                clock = t if r == 1 else float(path.time(lam + r * h))
                a, sig = (a_t, s_t) if r == 1 else sched(clock)
                step = r * h * (1 + eta)
                # The Ornstein-Uhlenbeck noise decays from the last stage to this one, and gathers the rest.
                wiener = math.exp(-eta * (r - reached) * h) * wiener
                wiener = wiener + math.sqrt(-math.expm1(-2 * eta * (r - reached) * h)) * noise(call)
                call, reached = call + 1, r
                y = sig / s_s * math.exp(-eta * r * h) * x - a * math.expm1(-step) * first + sig * wiener
                if outputs:
                    change = outputs[-1] - first
                    if stages == 2:
                        y = y - a * math.expm1(-step) * change / (2 * ratios[0])
                    else:
                        y = y + a * (math.expm1(-step) / step + 1) * r / made[-1] * change
                if r < 1:
                    outputs.append(D(y, clock))
                    made.append(r)
            x = y
        return x

    return run


def er_sde(points):
    """2309.06169, eq. 18, with the Lagrange polynomial in rho."""

    def phi(rho):
        return rho * (math.exp(rho**0.3) + 10)

    def weight(basis, rho_s, rho_t):
        """phi_t int L d(1 / phi), by parts."""
        slope = basis.deriv()
        inner = (
            quad(lambda rho: slope(rho) / phi(rho), rho_t, rho_s, epsabs=0, epsrel=1e-13)[0]
            if slope.order or slope(1.0)
            else 0
        )
        return basis(rho_t) - phi(rho_t) / phi(rho_s) * basis(rho_s) + phi(rho_t) * inner

    def run(sched, D, x, times, noise=None):
        rhos, values = [], []
        for i, (s, t) in enumerate(zip(times, times[1:], strict=False)):
            (a_s, s_s), (a_t, s_t) = sched(s), sched(t)
            value = D(x, s)
            if s_t == 0:
                x = value
                continue
            if a_s == 0:
                x = _from_noise(sched, D, x, s, t, noise(i))
                continue
            rho_s, rho_t = s_s / a_s, s_t / a_t
            rhos.insert(0, rho_s)
            values.insert(0, value)
            nodes = rhos[:points]
            r = phi(rho_t) / phi(rho_s)
            x = a_t / a_s * r * x
            for j in range(len(nodes)):
                x = x + a_t * weight(lagrange(nodes, j), rho_s, rho_t) * values[j]
            x = x + a_t * math.sqrt(rho_t**2 - rho_s**2 * r**2) * noise(i)
        return x

    return run


def maruyama(stages):
    """dx = (f x - g^2 score) dt + g dW with f = alpha' / alpha and g^2 = (sigma^2)' - 2 f sigma^2 (score_sde)."""

    def run(sched, D, x, times, noise=None):
        path, call = sched.path, 0

        def parts(t):
            a, s = sched(t)
            da, dsig = map(float, path.derivatives(t))
            return a, s, da / a, abs(2 * s * dsig - 2 * da / a * s * s)

        def drift(x, t):
            a, s, f, g2 = parts(t)
            score = -(x - a * D(x, t)) / s**2
            return f * x - g2 * score * math.copysign(1, times[0] - times[1])

        for s, t in zip(times, times[1:], strict=False):
            ends = sched(t)[1] == 0 or sched(s)[0] == 0
            if ends:
                x = D(x, s) if sched(t)[1] == 0 else _from_noise(sched, D, x, s, t, noise(call))
                call += 1
                continue
            dt = t - s
            dw = math.sqrt((parts(s)[3] + parts(t)[3]) / 2 * abs(dt)) * noise(call)
            one = drift(x, s)
            if stages == 2 and t != path.t_data:
                x = x + dt / 2 * (one + drift(x + dt * one + dw, t)) + dw
                call += 2
            else:
                x = x + dt * one + dw
                call += 1
        return x

    return run


def reverse_diffusion(sched, D, x, times, noise=None):
    for i, (s, t) in enumerate(zip(times, times[1:], strict=False)):
        (a_s, s_s), (a_t, s_t) = sched(s), sched(t)
        if s_t == 0 or a_s == 0:
            x = D(x, s) if s_t == 0 else _from_noise(sched, D, x, s, t, noise(i))
            continue
        root = a_s / a_t
        g2 = s_s**2 - root**2 * s_t**2
        score = (a_s * D(x, s) - x) / s_s**2
        x = (2 - root) * x + g2 * score + math.sqrt(g2) * noise(i)
    return x


class Net:
    """D, and the number of its last call."""

    def __init__(self, D):
        self.D, self.call = D, -1

    def __call__(self, x, t):
        self.call += 1
        return self.D(x, t)


def _eps(sched, D, y, rho):
    """eps of y = x / alpha at a noise level."""
    t = float(sched.path.time(-math.log(rho)))
    return (y - D(sched(t)[0] * y, t)) / rho


def _heun(sched, D, y, high, low):
    """EDM's Heun step of x / alpha; to rho = 0 it is Euler's."""
    d = _eps(sched, D, y, high)
    end = y + (low - high) * d
    return end if low == 0 else y + (low - high) * (d + _eps(sched, D, end, low)) / 2


def _two_s(sched, D, y, high, low, data):
    """DPM-Solver-2 with r = 1/2, on the noise, or DPM-Solver++(2S) on the data."""
    if low == 0:
        return y - high * _eps(sched, D, y, high)
    mid, h = math.sqrt(high * low), math.log(high / low)
    if not data:
        inner = y + (mid - high) * _eps(sched, D, y, high)
        return y + (low - high) * _eps(sched, D, inner, mid)
    t = float(sched.path.time(-math.log(high)))
    first = D(sched(t)[0] * y, t)
    inner = mid / high * y - math.expm1(-h / 2) * first
    t = float(sched.path.time(-math.log(mid)))
    return low / high * y - math.expm1(-h) * D(sched(t)[0] * inner, t)


def _levels(sched, times):
    return [math.exp(-sched.lam(t)) if sched.lam(t) < math.inf else 0.0 for t in times]


def _out_of_noise(sched, D, x, times):
    """(x / alpha, levels) after the first-order step that leaves alpha = 0."""
    if sched(times[0])[0]:
        return x / sched(times[0])[0], _levels(sched, times)
    a, s = sched(times[1])
    x = s * x + a * D(x, times[0])
    return x / a, _levels(sched, times[1:])


def churn(s_churn, s_min, s_max, s_noise):
    """2206.00364, algorithm 2."""

    def run(sched, D, x, times, noise=None):
        D = Net(D)
        steps, most = (
            len(times) - 1,
            math.exp(-sched.lam(sched.path.t_noise)) if sched(sched.path.t_noise)[0] else math.inf,
        )
        y, levels = _out_of_noise(sched, D, x, times)
        for high, low in zip(levels, levels[1:], strict=False):
            gamma = min(s_churn / steps, math.sqrt(2) - 1) if s_min <= high <= s_max else 0.0
            up = min((1 + gamma) * high, most)
            y = y + s_noise * math.sqrt(max(up**2 - high**2, 0)) * noise(D.call)
            y = _heun(sched, D, y, up, low)
        a, _ = sched(times[-1])
        return a * y

    return run


def ancestral(data, eta):
    def run(sched, D, x, times, noise=None):
        D = Net(D)
        if not sched(times[0])[0]:  # everything is renewed
            a, s = sched(times[1])
            down = a * D(x, times[0]) + s * math.sqrt(1 - eta**2) * x
            x, times = down + s * eta * noise(D.call), times[1:]
        y, levels = x / sched(times[0])[0], _levels(sched, times)
        for high, low in zip(levels, levels[1:], strict=False):
            up = eta * low * math.sqrt(1 - (low / high) ** 2)
            y = _two_s(sched, D, y, high, math.sqrt(low**2 - up**2), data)
            if up:
                y = y + up * noise(D.call)
        return sched(times[-1])[0] * y

    return run


def restart(low, high, count):
    """2306.14878, algorithm 1, on the nodes of the grid."""

    def run(sched, D, x, times, noise=None):
        D = Net(D)
        y, levels = _out_of_noise(sched, D, x, times)
        bottom = next(j for j, v in enumerate(levels) if v <= low)
        top = max(j for j, v in enumerate(levels) if v >= high)
        for j in range(bottom):
            y = _heun(sched, D, y, levels[j], levels[j + 1])
        for _ in range(count):
            y = y + math.sqrt(levels[top] ** 2 - levels[bottom] ** 2) * noise(D.call)
            for j in range(top, bottom):
                y = _heun(sched, D, y, levels[j], levels[j + 1])
        for j in range(bottom, len(levels) - 1):
            y = _heun(sched, D, y, levels[j], levels[j + 1])
        return sched(times[-1])[0] * y

    return run


STOCHASTIC = {
    "ddpm": ddpm(False), "ddpm(variance='large')": ddpm(True),
    "sa-1": sa(1, 2, 1.0), "sa-2": sa(2, 3, 1.0), "sa-3(tau=0.6)": sa(3, 4, 0.6), "sa-3(corrector=0)": sa(3, 0, 1.0),
    "sa-2(corrector=2, tau=1.3)": sa(2, 2, 1.3),
    "seeds-1": sa(1, 0, 1.0), "seeds-2": seeds(2, 1.0), "seeds-3": seeds(3, 1.0), "dpmpp-sde(tau=0.5)": seeds(2, 0.25),
    "dpmpp-2m-sde": multistep_sde(2, 1.0), "dpmpp-2m-sde(tau=0.5)": multistep_sde(2, 0.25),
    "dpmpp-3m-sde": multistep_sde(3, 1.0),
    "er-sde-1": er_sde(1), "er-sde-2": er_sde(2), "er-sde-3": er_sde(3),
    "euler-maruyama": maruyama(1), "stochastic-heun": maruyama(2), "reverse-diffusion": reverse_diffusion,
    "edm-heun(s_churn=3, s_min=0.05, s_max=50)": churn(3, 0.05, 50, 1.0),
    "edm-heun(s_noise=1.007)": churn(40, 0, math.inf, 1.007),
    "dpm-2-ancestral": ancestral(False, 1.0), "dpmpp-2s-ancestral": ancestral(True, 1.0),
    "dpmpp-2s-ancestral(eta=0.6)": ancestral(True, 0.6),
    "restart(low=0.5, high=1.5)": restart(0.5, 1.5, 2), "restart(low=0.5, high=1.5, times=3)": restart(0.5, 1.5, 3),
}  # fmt: skip
"""Solver spec -> loop(schedule, D, x, times, noise)."""

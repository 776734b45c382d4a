"""Every named solver again, as the plain loop of its paper: what the tableaux must reproduce.

Nothing here is shared with the library but the path's alpha(t) and sigma(t). A loop gets `D(x, t)`, the
denoised estimate, and the node times; alpha, sigma and lambda of a node are looked up as it goes.
"""

import math
from fractions import Fraction

import numpy as np


class Schedule:
    def __init__(self, path):
        self.path = path

    def __call__(self, t):
        return float(self.path.alpha(t)), float(self.path.sigma(t))

    def lam(self, t):
        a, s = self(t)
        return math.log(a) - math.log(s) if a and s else math.inf if a else -math.inf


def _to_data(sched, D, x, s, t):
    """The rule for the ends: one first-order step in denoised form."""
    (a_s, s_s), (a_t, s_t) = sched(s), sched(t)
    return s_t / s_s * x + (a_t - a_s * s_t / s_s) * D(x, s)


def runge_kutta(A, b, frame):
    """Butcher's scheme on dz/dv = d(z, v), spelt out for three frames; to the data by one first-order step."""

    def run(sched, D, x, times, noise=None):
        path = sched.path
        for s, t in zip(times, times[1:], strict=False):
            if (frame == "noise" and (sched(t)[1] == 0 or sched(s)[0] == 0)) or (
                t == path.t_data != path.t_last and len(b) > 1
            ):
                x = _to_data(sched, D, x, s, t)
                continue

            def var(t):
                a, sig = sched(t)
                return {
                    "noise": lambda: sig / a,
                    "straight": lambda: sig / (a + sig),
                    "trig": lambda: math.atan2(sig, a),
                }[frame]()

            def scale(t):
                a, sig = sched(t)
                return {"noise": a, "straight": a + sig, "trig": math.hypot(a, sig)}[frame]

            def slope(z, v, clock):
                a, sig = sched(clock)
                x = z * scale(clock)
                data = D(x, clock)
                if sig:
                    eps = (x - a * data) / sig
                    return {"noise": eps, "straight": eps - data, "trig": math.cos(v) * eps - math.sin(v) * data}[frame]
                return run.at_data(x, clock, v)

            def time(v):
                lam = {
                    "noise": lambda: -math.log(v),
                    "straight": lambda: math.log((1 - v) / v),
                    "trig": lambda: -math.log(math.tan(v)),
                }
                return float(path.time(lam[frame]()))

            v, h, z, k = var(s), var(t) - var(s), x / scale(s), []
            for row in A:
                c = sum(row)
                clock = s if c == 0 else t if c == 1 else time(v + float(c) * h)
                k.append(
                    slope(
                        z + h * sum((float(w) * q for w, q in zip(row, k, strict=False)), 0 * z),
                        v + float(c) * h,
                        clock,
                    )
                )
            x = (z + h * sum(float(w) * q for w, q in zip(b, k, strict=True))) * scale(t)
        return x

    return run


def adams(points):
    """Adams-Bashforth on the velocity of CondOT, z = x / (alpha + sigma) by u = sigma / (alpha + sigma)."""

    def run(sched, D, x, times, noise=None):
        us, fs = [], []
        for s, t in zip(times, times[1:], strict=False):
            (a, sig), (a_t, s_t) = sched(s), sched(t)
            data = D(x, s)
            us.insert(0, sig / (a + sig))
            fs.insert(0, (x - a * data) / sig - data)
            u, f = us[:points], fs[:points]
            u_t, z = s_t / (a_t + s_t), x / (a + sig)
            for j in range(len(u)):
                lagrange = np.poly1d([1.0])
                for k in range(len(u)):
                    if k != j:
                        lagrange *= np.poly1d([1.0, -u[k]]) / (u[j] - u[k])
                whole = lagrange.integ()
                z = z + (whole(u_t) - whole(u[0])) * f[j]
            x = z * (a_t + s_t)
        return x

    return run


def ddim(eta):
    """Song et al. 2020, eq. 12 and 16, by alpha-bar where the path has unit variance."""

    def run(sched, D, x, times, noise=None):
        for i, (s, t) in enumerate(zip(times, times[1:], strict=False)):
            (a, sig), (a_t, s_t) = sched(s), sched(t)
            data = D(x, s)
            eps = (x - a * data) / sig
            std = 0.0
            if eta:  # the general form, of which the paper's is the case alpha^2 + sigma^2 = 1
                std = eta * s_t * math.sqrt(1 - (s_t * a / (sig * a_t)) ** 2)
            x = a_t * data + math.sqrt(s_t**2 - std**2) * eps
            if eta and std:
                x = x + std * noise(i)
        return x

    return run


def dpmpp(points):
    """DPM-Solver++ 2M (algorithm 2) and 3M as in its code."""

    def run(sched, D, x, times, noise=None):
        ms, lams = [], []
        for s, t in zip(times, times[1:], strict=False):
            (_, sig), (a_t, s_t) = sched(s), sched(t)
            m = D(x, s)
            if s_t == 0:
                return m
            lam_s, lam_t = sched.lam(s), sched.lam(t)
            if not math.isfinite(lam_s):
                x = _to_data(sched, lambda *_, m=m: m, x, s, t)
                continue
            ms.insert(0, m)
            lams.insert(0, lam_s)
            h = lam_t - lam_s
            base, e = s_t / sig * x, math.expm1(-h)
            if len(ms) == 1 or points == 1:
                x = base - a_t * e * m
            elif len(ms) == 2 or points == 2:
                r0 = (lams[0] - lams[1]) / h
                x = base - a_t * e * m - 0.5 * a_t * e * (m - ms[1]) / r0
            else:
                r0, r1 = (lams[0] - lams[1]) / h, (lams[1] - lams[2]) / h
                d0, d1 = (m - ms[1]) / r0, (ms[1] - ms[2]) / r1
                D1, D2 = d0 + r0 / (r0 + r1) * (d0 - d1), (d0 - d1) / (r0 + r1)
                x = base - a_t * e * m + a_t * (e / h + 1) * D1 - a_t * ((e + h) / h**2 - 0.5) * D2
        return x

    return run


def unipc(order, bh="bh2", noise_prediction=False):
    """UniPC (algorithms 5 to 8 of the paper) with its linear system R rho = b, solved in fractions."""

    def solve(r, hh, B):
        # b_i = i! (hh phi_i-terms) / B by the published recursion; h is not small here, so it does not cancel.
        R, b, factorial, phi = [], [], 1, math.expm1(hh) / hh - 1
        for i in range(1, len(r) + 1):
            R.append([Fraction(x) ** (i - 1) for x in r])
            b.append(Fraction(phi * factorial / B))
            factorial *= i + 1
            phi = phi / hh - 1 / factorial
        n = len(r)
        M = [[*row, y] for row, y in zip(R, b, strict=True)]
        for i in range(n):
            pivot = next(k for k in range(i, n) if M[k][i])
            M[i], M[pivot] = M[pivot], M[i]
            M[i] = [x / M[i][i] for x in M[i]]
            for k in range(n):
                if k != i:
                    M[k] = [x - M[k][i] * y for x, y in zip(M[k], M[i], strict=True)]
        return [float(row[-1]) for row in M]

    def update(sched, x, s, t, ms, lams, new=None):
        """From s to t with the outputs at and before s, corrected by `new`, the one at t."""
        (a_s, sig), (a_t, s_t) = sched(s), sched(t)
        h = sched.lam(t) - lams[0]
        hh = h if noise_prediction else -h
        B = hh if bh == "bh1" else math.expm1(hh)
        ratio, lead = (a_t / a_s, s_t) if noise_prediction else (s_t / sig, a_t)
        r = [(lam - lams[0]) / h for lam in lams[1:]]
        diffs = [(m - ms[0]) / rk for m, rk in zip(ms[1:], r, strict=True)]
        if new is not None:
            r, diffs = [*r, 1.0], [*diffs, new - ms[0]]
            rho = [0.5] if len(r) == 1 else solve(r, hh, B)
        else:
            rho = [0.5] if len(r) == 1 else solve(r, hh, B) if r else []
        x = ratio * x - lead * math.expm1(hh) * ms[0]
        for w, d in zip(rho, diffs, strict=True):
            x = x - lead * B * w * d
        return x

    def run(sched, D, x, times, noise=None):
        ms, lams, previous = [], [], None
        for i, (s, t) in enumerate(zip(times, times[1:], strict=False)):
            a, sig = sched(s)
            m = (x - a * D(x, s)) / sig if noise_prediction and a else D(x, s)
            if previous is not None and ms:
                base, start, used = previous
                x = update(sched, base, start, s, ms[:used], lams[:used], m)
            if not a:
                x, previous = _to_data(sched, lambda *_, m=m: m, x, s, t), None
                continue
            if sched(t)[1] == 0:
                return x * (sched(t)[0] / a) - sig * sched(t)[0] / a * m if noise_prediction else m
            ms.insert(0, m)
            lams.insert(0, sched.lam(s))
            used = min(order, len(ms), len(times) - 1 - i)
            previous = (x, s, used)
            x = update(sched, x, s, t, ms[:used], lams[:used])
        return x

    return run


HALF = Fraction(1, 2)
EULER = ([[]], [1])
HEUN = ([[], [1]], [HALF, HALF])
MIDPOINT = ([[], [HALF]], [0, 1])
RALSTON = ([[], [Fraction(2, 3)]], [Fraction(1, 4), Fraction(3, 4)])
RK4 = ([[], [HALF], [0, HALF], [0, 0, 1]], [Fraction(1, 6), Fraction(1, 3), Fraction(1, 3), Fraction(1, 6)])

LOOPS = {
    "euler": adams(1), "ab-1": adams(1), "ab-2": adams(2), "ab-3": adams(3), "ab-4": adams(4),
    "ddim": ddim(0.0), "ddim(eta=0.5)": ddim(0.5), "ddim(eta=1.0)": ddim(1.0),
    "dpmpp-2m": dpmpp(2), "dpmpp-3m": dpmpp(3),
    "unipc-1": unipc(1), "unipc-2": unipc(2), "unipc-3": unipc(3),
    "unipc-2(bh='bh1')": unipc(2, "bh1"), "unipc-3(bh='bh1')": unipc(3, "bh1"),
    "unipc-3(frame='noise')": unipc(3, noise_prediction=True),
    **{f"{name}(frame={frame!r})": runge_kutta(*method, frame) for frame in ("straight", "noise", "trig")
       for name, method in (("heun", HEUN), ("midpoint", MIDPOINT), ("ralston", RALSTON), ("rk4", RK4))},
    "euler(frame='trig')": runge_kutta(*EULER, "trig"), "euler(frame='noise')": runge_kutta(*EULER, "noise"),
}  # fmt: skip
"""Solver spec -> loop(schedule, D, x, times, noise)."""

"""Every named solver again, as the plain loop of its paper: what the tableaux must reproduce.

Nothing here is shared with the library but the path's alpha(t) and sigma(t). A loop gets `D(x, t)`, the
denoised estimate, and the node times; alpha, sigma and lambda of a node are looked up as it goes.
"""

import math
from fractions import Fraction

import mpmath
import numpy as np
from scipy.integrate import RK23, RK45

from support.stochastic_loops import STOCHASTIC


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


def reversible_heun(frame):
    """Kidger et al., 2105.13493, algorithm 1 without the noise: z and its companion, called at every node.

    To the data, where the network may not be called there, a first-order step from z.
    """

    def run(sched, D, x, times, noise=None):
        def var(t):
            a, sig = sched(t)
            return {"straight": sig / (a + sig), "trig": math.atan2(sig, a)}[frame]

        def scale(t):
            a, sig = sched(t)
            return {"straight": a + sig, "trig": math.hypot(a, sig)}[frame]

        def slope(z, t):
            a, sig = sched(t)
            if not sig:
                return run.at_data(z * scale(t), t, var(t))
            data = D(z * scale(t), t)
            eps = (z * scale(t) - a * data) / sig
            return eps - data if frame == "straight" else math.cos(var(t)) * eps - math.sin(var(t)) * data

        path = sched.path
        short = times[-1] == path.t_data != path.t_last
        nodes = times[:-1] if short else times
        z = hat = x / scale(nodes[0])
        f = slope(hat, nodes[0])
        for s, t in zip(nodes, nodes[1:], strict=False):
            h = var(t) - var(s)
            hat_next = 2 * z - hat + h * f
            f_next = slope(hat_next, t)
            z, hat, f = z + h / 2 * (f + f_next), hat_next, f_next
        x = z * scale(nodes[-1])
        return _to_data(sched, D, x, *times[-2:]) if short else x

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


def ipndm(points, start=None):
    """PNDM (Liu et al., 2202.09778): equation 11 is `transfer`, 12 the multistep and 13 the Runge-Kutta combination.

    start: None for iPNDM, "prk" for PNDM, "heun" for the PLMS of Stable Diffusion.
    """
    table = [[1], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]

    def run(sched, D, x, times, noise=None):
        def eps(x, t):
            a, sig = sched(t)
            return (x - a * D(x, t)) / sig

        def transfer(x, e, s, t):
            (a, sig), (a_t, s_t) = sched(s), sched(t)
            return a_t / a * (x - sig * e) + s_t * e

        es = []
        for s, t in zip(times, times[1:], strict=False):
            if sched(s)[0] == 0 or sched(t)[1] == 0:
                x = _to_data(sched, D, x, s, t)
                continue
            es.insert(0, eps(x, s))
            e, half = es[0], (s + t) / 2
            if start == "prk" and len(es) < points:
                e2 = eps(transfer(x, e, s, half), half)
                e3 = eps(transfer(x, e2, s, half), half)
                e4 = eps(transfer(x, e3, s, t), t)
                e = (e + 2 * e2 + 2 * e3 + e4) / 6
            elif start == "heun" and len(es) == 1:
                e = (e + eps(transfer(x, e, s, t), t)) / 2
            else:
                e = sum(w * old for w, old in zip(table[min(len(es), points) - 1], es, strict=False))
            x = transfer(x, e, s, t)
        return x

    return run


def adams_moulton(points, pece=False):
    """Adams-Bashforth, corrected by Adams-Moulton with one value more, on the velocity of CondOT."""

    def integrate(us, fs, start, stop):
        total = 0
        for j, f in enumerate(fs):
            lagrange = np.poly1d([1.0])
            for k in range(len(us)):
                if k != j:
                    lagrange *= np.poly1d([1.0, -us[k]]) / (us[j] - us[k])
            whole = lagrange.integ()
            total = total + (whole(stop) - whole(start)) * f
        return total

    def run(sched, D, x, times, noise=None):
        path = sched.path
        c = lambda t: sum(sched(t))  # noqa: E731
        u = lambda t: sched(t)[1] / c(t)  # noqa: E731

        def f(z, t):
            a, sig = sched(t)
            data = D(z * c(t), t)
            return (z * c(t) - a * data) / sig - data if sig else run.at_data(z * c(t), t, 0.0)

        z, us, fs = x / c(times[0]), [], []
        predicted = z
        for i, t in enumerate(times):
            last = i + 1 == len(times)
            if last and (not pece or t == path.t_data != path.t_last):
                break
            us, fs = [u(t), *us], [f(predicted, t), *fs]
            if i:
                z = z + integrate(us[: points + 1], fs[: points + 1], us[1], us[0])
                predicted = z
                if pece and not last:
                    fs[0] = f(z, t)
            if not last:
                predicted = z + integrate(us[:points], fs[:points], us[0], u(times[i + 1]))
        return predicted * c(times[-1])

    return run


def singlestep(order, r1, r2=None, data=True):
    """DPM-Solver++(2S) (algorithm 1 of 2211.01095) and (3S) as in its code; DPM-Solver-2 and -3 (algorithms 1 and 2 of
    2206.00927) with noise prediction."""

    def run(sched, D, x, times, noise=None):
        for s, t in zip(times, times[1:], strict=False):
            lam_s, lam_t = sched.lam(s), sched.lam(t)
            if not (math.isfinite(lam_s) and math.isfinite(lam_t)) or t == sched.path.t_data != sched.path.t_last:
                x = _to_data(sched, D, x, s, t)
                continue
            h = lam_t - lam_s
            (a, sig), (a_t, s_t) = sched(s), sched(t)
            inner = [float(sched.path.time(lam_s + r * h)) for r in (r1, r2) if r]
            (a_1, s_1), (a_2, s_2) = sched(inner[0]), sched(inner[-1])
            if data:
                m0 = D(x, s)
                m1 = D(s_1 / sig * x - a_1 * math.expm1(-r1 * h) * m0, inner[0])
                if order == 2:
                    m = (1 - 1 / (2 * r1)) * m0 + 1 / (2 * r1) * m1
                    x = s_t / sig * x - a_t * math.expm1(-h) * m
                    continue
                phi_22, phi_2 = math.expm1(-r2 * h) / (r2 * h) + 1, math.expm1(-h) / h + 1
                u = s_2 / sig * x - a_2 * math.expm1(-r2 * h) * m0 + r2 / r1 * a_2 * phi_22 * (m1 - m0)
                m2 = D(u, inner[1])
                x = s_t / sig * x - a_t * math.expm1(-h) * m0 + 1 / r2 * a_t * phi_2 * (m2 - m0)
                continue

            def eps(x, t):
                return (x - sched(t)[0] * D(x, t)) / sched(t)[1]

            e0 = eps(x, s)
            e1 = eps(a_1 / a * x - s_1 * math.expm1(r1 * h) * e0, inner[0])
            if order == 2:
                x = a_t / a * x - s_t * math.expm1(h) * e0 - s_t / (2 * r1) * math.expm1(h) * (e1 - e0)
                continue
            bracket = math.expm1(r2 * h) / (r2 * h) - 1
            u = a_2 / a * x - s_2 * math.expm1(r2 * h) * e0 - s_2 * r2 / r1 * bracket * (e1 - e0)
            e2 = eps(u, inner[1])
            x = a_t / a * x - s_t * math.expm1(h) * e0 - s_t / r2 * (math.expm1(h) / h - 1) * (e2 - e0)
        return x

    return run


def etd(c, rows, data=True):
    """An exponential Runge-Kutta method from all its columns, `rows(phi)` with phi(k, c) = phi_k(c z) in 30 digits."""

    def run(sched, D, x, times, noise=None):
        for s, t in zip(times, times[1:], strict=False):
            lam_s, lam_t = sched.lam(s), sched.lam(t)
            if not (math.isfinite(lam_s) and math.isfinite(lam_t)) or t == sched.path.t_data != sched.path.t_last:
                x = _to_data(sched, D, x, s, t)
                continue
            h = lam_t - lam_s
            z = -h if data else h

            def phi(k, c, z=z):
                with mpmath.workdps(30):
                    w = mpmath.mpf(c) * z
                    return float((mpmath.exp(w) - sum(w**j / mpmath.factorial(j) for j in range(k))) / w**k)

            (a, sig), outputs = sched(s), []
            clocks = [s if r == 0 else t if r == 1 else float(sched.path.time(lam_s + r * h)) for r in c] + [t]
            for row, clock in zip(rows(phi), clocks, strict=True):
                a_c, s_c = sched(clock)
                y = (s_c / sig if data else a_c / a) * x
                for w, m in zip(row, outputs, strict=True):
                    y = y + (a_c if data else -s_c) * h * w * m
                if len(outputs) < len(c):
                    m = D(y, clock)
                    outputs.append(m if data else (y - a_c * m) / s_c)
            x = y
        return x

    return run


def res2(c2):
    def rows(phi):
        b2 = phi(2, 1) / c2
        return [[], [c2 * phi(1, c2)], [phi(1, 1) - b2, b2]]

    return (0, c2), rows


def res3(c2, c3):
    def rows(phi):
        gamma = (3 * c3**2 - 2 * c3) / ((2 - 3 * c2) * c2)
        b3 = phi(2, 1) / (gamma * c2 + c3)
        a32 = gamma * c2 * phi(2, c2) + c3**2 / c2 * phi(2, c3)
        b = [phi(1, 1) - gamma * b3 - b3, gamma * b3, b3]
        return [[], [c2 * phi(1, c2)], [c3 * phi(1, c3) - a32, a32], b]

    return (0, c2, c3), rows


def krogstad(phi):
    phi1, phi2, phi3 = phi(1, 1), phi(2, 1), phi(3, 1)
    return [
        [],
        [phi(1, 0.5) / 2],
        [phi(1, 0.5) / 2 - phi(2, 0.5), phi(2, 0.5)],
        [phi1 - 2 * phi2, 0.0, 2 * phi2],
        [phi1 - 3 * phi2 + 4 * phi3, 2 * phi2 - 4 * phi3, 2 * phi2 - 4 * phi3, 4 * phi3 - phi2],
    ]


def hochbruck_ostermann(phi):
    phi1, phi2, phi3 = phi(1, 1), phi(2, 1), phi(3, 1)
    a52 = phi(2, 0.5) / 2 - phi3 + phi2 / 4 - phi(3, 0.5) / 2
    a54 = phi(2, 0.5) / 4 - a52
    return [
        [],
        [phi(1, 0.5) / 2],
        [phi(1, 0.5) / 2 - phi(2, 0.5), phi(2, 0.5)],
        [phi1 - 2 * phi2, phi2, phi2],
        [phi(1, 0.5) / 2 - 2 * a52 - a54, a52, a52, a54],
        [phi1 - 3 * phi2 + 4 * phi3, 0.0, 0.0, 4 * phi3 - phi2, 4 * phi2 - 8 * phi3],
    ]


def published(a, b, c):
    """Coefficients as printed by others, in fractions; the first column makes the rows sum to c."""
    rows = [list(map(Fraction, map(float, row[:i]))) for i, row in enumerate(a)]
    return [[Fraction(float(x)) - sum(row[1:]), *row[1:]] if row else [] for row, x in zip(rows, c, strict=True)], b


HALF = Fraction(1, 2)
EULER = ([[]], [1])
HEUN = ([[], [1]], [HALF, HALF])
MIDPOINT = ([[], [HALF]], [0, 1])
RALSTON = ([[], [Fraction(2, 3)]], [Fraction(1, 4), Fraction(3, 4)])
RK4 = ([[], [HALF], [0, HALF], [0, 0, 1]], [Fraction(1, 6), Fraction(1, 3), Fraction(1, 3), Fraction(1, 6)])
SSPRK3 = ([[], [1], [HALF / 2, HALF / 2]], [Fraction(1, 6), Fraction(1, 6), Fraction(2, 3)])
KUTTA38 = ([[], [Fraction(1, 3)], [-Fraction(1, 3), 1], [1, -1, 1]], [Fraction(x, 8) for x in (1, 3, 3, 1)])
BOSH3 = published(RK23.A, RK23.B, RK23.C)
DOPRI5 = published(RK45.A, RK45.B, RK45.C)
TSIT5 = published(
    [
        [],
        [0.161],
        [-0.008480655492356989, 0.335480655492357],
        [2.8971530571054935, -6.359448489975075, 4.3622954328695815],
        [5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525],
        [5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383],
    ],
    [0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774],
    [0, 0.161, 0.327, 0.9, 0.9800255409045097, 1],
)

LOOPS = {
    "euler": adams(1), "ab-1": adams(1), "ab-2": adams(2), "ab-3": adams(3), "ab-4": adams(4),
    "ddim": ddim(0.0), "ddim(eta=0.5)": ddim(0.5), "ddim(eta=1.0)": ddim(1.0),
    "dpmpp-2m": dpmpp(2), "dpmpp-3m": dpmpp(3),
    "unipc-1": unipc(1), "unipc-2": unipc(2), "unipc-3": unipc(3),
    "unipc-4": unipc(4), "unipc-5": unipc(5), "unipc-6": unipc(6),
    "ipndm-3": ipndm(3), "ipndm-4": ipndm(4), "pndm": ipndm(4, "prk"), "plms": ipndm(4, "heun"),
    "abm-1": adams_moulton(1), "abm-3": adams_moulton(3),
    "abm-2(mode='pece', frame='straight')": adams_moulton(2, pece=True),
    "unipc-2(bh='bh1')": unipc(2, "bh1"), "unipc-3(bh='bh1')": unipc(3, "bh1"),
    "unipc-3(frame='noise')": unipc(3, noise_prediction=True),
    **{f"{name}(frame={frame!r})": runge_kutta(*method, frame) for frame in ("straight", "noise", "trig")
       for name, method in (("heun", HEUN), ("midpoint", MIDPOINT), ("ralston", RALSTON), ("rk4", RK4))},
    **{f"{name}(frame={frame!r})": runge_kutta(*method, frame)
       for name, method, frame in (("ssprk3", SSPRK3, "straight"), ("bosh3", BOSH3, "noise"),
                                   ("rk4-38", KUTTA38, "trig"), ("dopri5", DOPRI5, "straight"),
                                   ("tsit5", TSIT5, "noise"))},
    "dpmpp-2s": singlestep(2, 0.5), "dpmpp-2s(r1=0.3)": singlestep(2, 0.3), "dpmpp-3s": singlestep(3, 1 / 3, 2 / 3),
    "dpm-2s": singlestep(2, 0.5, data=False), "dpm-3s": singlestep(3, 1 / 3, 2 / 3, data=False),
    "dpm-3s(r1=0.2, r2=0.5)": singlestep(3, 0.2, 0.5, data=False),
    **{f"{name}(frame={frame!r})": etd(*method, frame == "denoised") for frame in ("denoised", "noise")
       for name, method in (("res-2s", res2(0.5)), ("res-3s", res3(0.5, 1)), ("etdrk-4s", ((0, 0.5, 0.5, 1), krogstad)),
                            ("res-5s", ((0, 0.5, 0.5, 1, 0.5), hochbruck_ostermann)))},
    "res-2s(c2=0.8)": etd(*res2(0.8)), "res-3s(c2=0.3, c3=0.75)": etd(*res3(0.3, 0.75)),
    "reversible-heun": reversible_heun("trig"), "reversible-heun(frame='straight')": reversible_heun("straight"),
    "euler(frame='trig')": runge_kutta(*EULER, "trig"), "euler(frame='noise')": runge_kutta(*EULER, "noise"),
    **STOCHASTIC,
}  # fmt: skip
"""Solver spec -> loop(schedule, D, x, times, noise)."""

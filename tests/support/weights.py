"""The weights of a step, read off a tableau, and what the papers' formulas say they are."""

import math
from fractions import Fraction

import mpmath as mp
import numpy as np

from diffsolve import paths
from diffsolve.tableau.frames import FRAMES


def composition(tableau):
    """(A, b) of one Runge-Kutta step, read off the run-time weights by following z and every k through the rows."""
    frame, count = FRAMES[tableau.frame[0]], tableau.nfe
    points = [paths.Position(*row, math.nan, math.nan) for row in (*tableau.calls, tableau.grid[-1])]
    h = frame.v(points[-1]) - frame.v(points[0])
    basis = np.eye(count + 1)
    s = y = basis[0] * frame.c(points[0])  # z itself is basis[0]
    rows, d = [], np.zeros((tableau.history, count + 1))
    for i in range(count):
        rows.append(y / frame.c(points[i]))
        d = np.vstack([basis[i + 1], d[:-1]])
        s, y = tableau.weights[i] @ np.vstack([s, y, d, 0 * y])
    rows.append(y / frame.c(points[-1]))
    rows = np.array(rows)
    np.testing.assert_allclose(rows[:, 0], 1, rtol=1e-12)
    return rows[:-1, 1:] / h, rows[-1, 1:] / h


def added(tableau, row, ratio):
    """What the step of a row adds to `ratio` times the row's state: weights on d, newest first."""
    s, y = tableau.weights[row]
    state = s if tableau.history > 1 and not np.array_equal(s, y) else np.eye(len(y))[1]
    rest = y - float(ratio) * state
    np.testing.assert_allclose(rest[[0, 1, -1]], 0, atol=1e-15)
    return rest[2:-1]


def agree(found, expected):
    """Equal but for rounding, and for the zeros of a history that is longer than this combination."""
    expected = np.array([float(w) for w in expected] + [0.0] * (len(found) - len(expected)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def lagrange_integrals(nodes, start, stop):
    """The integral of each Lagrange polynomial from start to stop, exactly."""
    result = []
    for j, x in enumerate(nodes):
        poly = [Fraction(1)]  # coefficients, constant first
        for k, y in enumerate(nodes):
            if k != j:
                shifted = [Fraction(0), *poly]
                poly = [(a - y * b) / (x - y) for a, b in zip(shifted, [*poly, Fraction(0)], strict=True)]
        result.append(sum(c * (stop ** (n + 1) - start ** (n + 1)) / (n + 1) for n, c in enumerate(poly)))
    return result


def unipc(lam, end, lead, data, bh, corrects):
    """Weights on d at lam[0], lam[1], .. (and at the end, if it corrects) of a step from lam[0] to `end`.

    R(h) rho = b: UniPC (2302.04867), theorem 3.1 with b_k = k! h phi_(k+1)(h) / B(h), and rho = 1/2 where it is alone.
    """
    h = end - lam[0]
    r = [(x - lam[0]) / h for x in lam[1:]] + [mp.mpf(1)] * corrects
    hh = -h if data else h
    B = hh if bh == "bh1" else mp.expm1(hh)
    phi = [mp.expm1(hh) / hh]
    for k in range(1, len(r) + 1):
        phi.append((phi[-1] - 1 / mp.factorial(k)) / hh)
    if len(r) > 1:
        R = mp.matrix([[x**k for x in r] for k in range(len(r))])
        rho = list(mp.lu_solve(R, mp.matrix([mp.factorial(k) * hh * phi[k] / B for k in range(1, len(r) + 1)])))
    else:
        rho = [mp.mpf(1) / 2] * len(r)
    on_d = [-lead * B * w / x for w, x in zip(rho, r, strict=True)]
    return [-lead * mp.expm1(hh) - sum(on_d), *on_d]

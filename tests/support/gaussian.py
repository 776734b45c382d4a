"""What a tableau makes of Gaussian data, in closed form: no sampling.

For data N(mean, std^2) the exact network is affine, D = mean + k (x - alpha mean) with
k = alpha std^2 / (alpha^2 std^2 + sigma^2), so that every y is an affine function of the start and of the normals
drawn. Its coefficients are followed exactly.
"""

import numpy as np


def propagate(tableau, mean=0.7, std=0.4, prior=None):
    """(y, level): the coefficients of every y on (1, z of the start, z of every row), and its (alpha, sigma).

    Args:
        prior: the standard deviation that the run starts from; by default that of the exact marginal, around its mean.
    """
    n, K = tableau.nfe, tableau.history
    size = n + 3
    alpha, sigma = tableau.grid[0, 1:]
    x, z = np.zeros(size), np.eye(size)
    x[0] = alpha * mean if prior is None else 0.0
    x[1] = np.hypot(alpha * std, sigma) if prior is None else prior
    s, y = tableau.entry @ np.stack([x, z[2]])
    history, found = np.zeros((K, size)), [y]
    for i, (_, alpha, sigma) in enumerate(tableau.calls):
        k = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        data = k * y
        data[0] += mean * (1 - k * alpha)
        noise = (y - alpha * data) / sigma
        history = np.vstack([tableau.d[i, 0] * data + tableau.d[i, 1] * noise, history[:-1]])
        s, y = tableau.weights[i] @ np.vstack([s, y, history, z[i + 3] if i + 3 < size else 0 * y])
        found.append(y)
    levels = np.vstack([tableau.calls[:, 1:], tableau.grid[-1:, 1:]])
    return np.array(found), levels


def moments(y):
    """(mean, variance) of the affine functions y."""
    return y[:, 0], (y[:, 1:] ** 2).sum(-1)


def errors(tableau, mean=0.7, std=0.4):
    """|mean - exact| and |variance - exact| at the end."""
    y, levels = propagate(tableau, mean, std)
    m, v = moments(y)
    alpha, sigma = levels[-1]
    return abs(m[-1] - alpha * mean), abs(v[-1] - (alpha * std) ** 2 - sigma**2)

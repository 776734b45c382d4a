"""Exact flow maps of Gaussian data N(0, diag(variances)), as networks told two times."""

import math

import torch

import diffsolve as ds
from diffsolve import paths

VARIANCES = (0.3, 1.0, 2.0)


def std(path, t, variances=VARIANCES):
    """The standard deviations of x_t, (*t.shape, D)."""
    p = path.at(t)
    lam = torch.tensor(variances, dtype=torch.float64)
    return (p.alpha[..., None] ** 2 * lam + p.sigma[..., None] ** 2).sqrt()


def flow(path, x, t, s, variances=VARIANCES):
    """x_s of the probability flow from x_t = x (B, D): every direction is scaled as its standard deviation is."""
    t, s = (torch.as_tensor(v, dtype=torch.float64) for v in (t, s))
    return x * std(path, s, variances) / std(path, t, variances)


def flow_map(path, predicts, jumps, variances=VARIANCES):
    """The exact network of that prediction, averaged over that frame."""
    path = paths.named(path)
    clock = "rho" if math.isinf(path.t_data) else "t"
    back = {"edm": lambda c: path.time(-4 * c), "rho": lambda rho: path.time(-rho.log()), "t": lambda t: t}

    def net(x, *clocks):
        t, s = (back["edm" if predicts == "edm" else clock](c) for c in clocks)
        p = path.at(t)
        if predicts == "edm":
            x = x / model.input_scale(p)[:, None]
        on_x, on_out = (w[:, None] for w in model.landing(p, path.at(s)))
        jump = (flow(path, x, t, s, variances) - on_x * x) / on_out
        marginal = std(path, t, variances) ** 2
        lam = torch.tensor(variances, dtype=torch.float64)
        a, b = (torch.as_tensor(c, dtype=torch.float64).expand(len(t))[:, None] for c in model.coefficients(p))
        now = (a * p.alpha[:, None] * lam + b * p.sigma[:, None]) / marginal * x
        return torch.where((t == s)[:, None], now, jump)

    model = ds.adapt(net, path, predicts, jumps=jumps, clock=clock)
    return model

"""The exact log-density of a model whose network is a mixture's."""

import math

from diffsolve.adaptive import Adaptive

PREDICTS = {"condot": "velocity", "edm": "denoised", "vp": "noise"}
TIGHT = Adaptive("dopri8", rtol=1e-7, atol=1e-7)


def normal(x, deviation):
    x = x.double().flatten(1) / deviation
    return -x.square().sum(1) / 2 - x.shape[1] * math.log(deviation * math.sqrt(2 * math.pi))


def truth(mixture, path, x):
    """What the model with the prior N(0, prior_std^2) gives the data: the exact flow, and the mixture's own density.

    log p_0(x) - log p_T(x_T) is the flow's, whatever is then taken for the density at the noise end.
    """
    level = float(path.alpha(path.t_noise)), float(path.sigma(path.t_noise))
    end = mixture.flow(x.double(), (1.0, 0.0), level)
    return mixture.log_prob(x.double()) - mixture.log_prob(end, *level) + normal(end, path.prior_std())

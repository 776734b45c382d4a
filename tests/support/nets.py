"""A network that learns, for tests of gradients."""

import torch


class Net(torch.nn.Module):
    """Small and smooth."""

    def __init__(self, size=3):
        super().__init__()
        self.weight = torch.nn.Parameter(
            0.5 * torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        )

    def forward(self, x, t, shift=0.0):
        return torch.tanh(x @ self.weight + shift) * (1 + t[:, None].to(x))


def noise(n=2):
    return torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

"""Whether outputs were finite, looked at without waiting for the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from diffsolve.serving.request import Request

__all__ = ["Watch"]


class Watch:
    """Sums of outputs on their way to the host: on a CPU they are there at once, else when an event has passed."""

    def __init__(self) -> None:
        self._sent: deque[tuple[Tensor, torch.cuda.Event | None, Mapping[Request, Sequence[int]]]] = deque()

    def add(self, sums: Tensor, rows: Mapping[Request, Sequence[int]]) -> None:
        """The sums of the outputs of a call, and which of them are of which request."""
        event = None
        if sums.device.type == "cuda":
            host = torch.empty_like(sums, device="cpu", pin_memory=True)
            sums = host.copy_(sums, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._sent.append((sums, event, rows))

    def failed(self) -> set[Request]:
        """The requests of which an output is known to be not finite, of those that arrived since the last question."""
        found = set[Request]()
        while self._sent:
            sums, event, rows = self._sent[0]
            if event is not None and not event.query():  # type: ignore[no-untyped-call]
                break
            self._sent.popleft()
            finite = torch.isfinite(sums).cpu().numpy()
            found |= {request for request, places in rows.items() if not finite[list(places)].all()}
        return found

    def awaits(self, request: Request) -> bool:
        """Whether an output of the request is still on its way."""
        return any(request in rows for _, _, rows in self._sent)

"""A small server of images: requests of unequal length share a batch, and the page shows them as they come.

    python examples/server.py --port 8000          # then open http://localhost:8000

    POST /submit    {"label": 3, "solver": "dpmpp-2m", "steps": 20, "seed": 0}  ->  {"id": 7}, or 503 when too many wait
    GET  /state     every request that is kept: its progress, and how it ended
    GET  /7.png     the image, or while it is made its preview
    POST /cancel    {"id": 7}

The standard library serves it; one thread ticks the `ds.Stepper`. At most `limit` requests wait or run, and the last
`keep` that have ended are kept, so that neither memory nor waiting grows with the load.
"""

from __future__ import annotations

import argparse
import json
import struct
import threading
import zlib
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffsolve as ds

PAGE = Path(__file__).with_name("server.html")
LARGEST = 10_000
"""Bytes of a request's body."""
STEPS = 200


class Busy(Exception):
    """Too many requests wait."""


class Server:
    """A Stepper with a thread that ticks it, and the tickets by number.

    Args:
        model: the network.
        shape: (1, H, W), of a sample in [-1, 1].
        limit: requests that may wait or run.
        keep: requests that are kept after their end.
    """

    def __init__(
        self, model: ds.Model, shape: tuple[int, int, int], *, max_batch: int = 16, limit: int = 64, keep: int = 256
    ) -> None:
        self.stepper, self.shape, self.limit, self.keep = ds.Stepper(model, max_batch=max_batch), shape, limit, keep
        self.tickets: dict[int, tuple[ds.serving.Ticket, str]] = {}
        self.previews: dict[int, Tensor] = {}
        self.widths: list[int] = []
        """How many requests took part in each of the last ticks."""
        self._work, self._stop = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, options: Mapping[str, Any]) -> int:
        """Hand in a request; its number.

        Raises:
            Busy: if `limit` requests wait or run.
            ValueError, TypeError: as `Stepper.submit`.
        """
        asked = dict(options)
        label, steps = asked.pop("label", None), asked.get("steps")
        if not isinstance(steps, int) or not 1 <= steps <= STEPS:
            raise ValueError(f"steps must be an integer from 1 to {STEPS}, got {steps!r}")
        cond = None if label is None else {"label": torch.tensor(int(label))}
        with self._work:
            if sum(not ticket.done for ticket, _ in self.tickets.values()) >= self.limit:
                raise Busy
            ticket = self.stepper.submit(self.shape, cond=cond, **asked)
            self.tickets[ticket.number] = ticket, str(asked.get("solver", "auto"))
            ended = [number for number, (one, _) in self.tickets.items() if one.done]
            for number in ended[: max(0, len(ended) - self.keep)]:
                del self.tickets[number]
                self.previews.pop(number, None)
            self._work.notify()
        return ticket.number

    def cancel(self, number: int) -> None:
        """Take a request back.

        Raises:
            KeyError: if there is none of that number.
        """
        self.stepper.cancel(self.tickets[number][0])

    def state(self) -> dict[str, Any]:
        """What the page shows."""
        with self._work:
            lot = [
                {"id": number, "solver": solver, "call": one.call, "calls": one.calls,
                 "status": one.status.name if one.status is not None else "RUNNING" if one.call else "WAITING"}
                for number, (one, solver) in self.tickets.items()
            ]  # fmt: skip
            return {"requests": lot, "widths": self.widths[-120:]}

    def image(self, number: int) -> bytes | None:
        """A PNG of the result, or of the last preview."""
        ticket, _ = self.tickets[number]
        x = ticket.served.x if ticket.served is not None else self.previews.get(number)
        return None if x is None else png(x)

    def close(self) -> None:
        """End the thread, after its tick."""
        with self._work:
            self._stop = True
            self._work.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._work:
                while not self._stop and self.stepper.done:
                    self._work.wait()
                if self._stop:
                    return
            self.stepper.tick()
            running = [(n, ticket) for n, (ticket, _) in list(self.tickets.items()) if not ticket.done and ticket.call]
            self.widths = [*self.widths[-500:], len(running)]
            for number, ticket in running:
                preview = self.stepper.preview(ticket)
                if preview is not None:
                    self.previews[number] = preview.clone()


def png(x: Tensor) -> bytes:
    """A grey image (1, H, W) of numbers from -1 to 1, as a PNG file."""
    grey = ((x[0].clamp(-1, 1).nan_to_num(0.0) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
    height, width = grey.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b"".join(b"\0" + line.tobytes() for line in grey)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    """The requests of HTTP that a server answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/":
                self.answer(HTTPStatus.OK, PAGE.read_bytes(), "text/html; charset=utf-8")
            elif self.path == "/state":
                self.json(server.state())
            elif (name := self.path.partition("?")[0]).endswith(".png") and name[1:-4].isdigit():
                self.guarded(lambda: server.image(int(name[1:-4])), "image/png")
            else:
                self.answer(HTTPStatus.NOT_FOUND, b"")

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 < length <= LARGEST:
                self.answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b"")
                self.close_connection = True
                return
            body = self.rfile.read(length)
            if self.path == "/submit":
                self.guarded(lambda: json.dumps({"id": server.submit(json.loads(body))}).encode(), "application/json")
            elif self.path == "/cancel":
                self.guarded(lambda: server.cancel(int(json.loads(body)["id"])) or b"{}", "application/json")
            else:
                self.answer(HTTPStatus.NOT_FOUND, b"")

        def guarded(self, work: Callable[[], bytes | None], kind: str) -> None:
            try:
                content = work()
            except Busy:
                self.answer(HTTPStatus.SERVICE_UNAVAILABLE, b"too many requests wait", "text/plain")
            except KeyError:
                self.answer(HTTPStatus.NOT_FOUND, b"")
            except (ValueError, TypeError) as error:
                self.answer(HTTPStatus.BAD_REQUEST, str(error).encode(), "text/plain; charset=utf-8")
            else:
                self.answer(HTTPStatus.OK if content is not None else HTTPStatus.NOT_FOUND, content or b"", kind)

        def json(self, value: Any) -> None:
            self.answer(HTTPStatus.OK, json.dumps(value).encode(), "application/json")

        def answer(self, status: HTTPStatus, content: bytes, kind: str = "text/plain") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-batch", type=int, default=16)
    given = parser.parse_args()
    server = Server(ds.load("digits"), (1, 8, 8), max_batch=given.max_batch)
    with ThreadingHTTPServer(("localhost", given.port), handler(server)) as httpd:
        print(f"http://localhost:{given.port}")
        try:
            httpd.serve_forever()
        except KeyboardInterrupt:
            server.close()


if __name__ == "__main__":
    main()

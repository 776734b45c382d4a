"""The example server, under a bounded load."""

import importlib.util
import json
import threading
import time
import urllib.error
import urllib.request
import zlib
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import diffsolve as ds

FILE = Path(__file__).parents[2] / "examples" / "server.py"
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("example_server", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def served(example):
    """(address, server) with a small network that waits until it is let go."""
    gate = threading.Event()

    def net(x, t, label):
        gate.wait(20)
        return 0.5 * x + 0.1 * label.to(x).view(-1, 1, 1, 1)

    server = example.Server(ds.adapt(net, "condot", "velocity"), SHAPE, max_batch=4, limit=12, keep=8)
    httpd = ThreadingHTTPServer(("localhost", 0), example.handler(server))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://localhost:{httpd.server_port}", server, gate
    gate.set()
    httpd.shutdown()
    httpd.server_close()
    server.close()


def ask(url, value=None):
    """(status, content)."""
    data = None if value is None else json.dumps(value).encode()
    try:
        with urllib.request.urlopen(url, data=data, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_a_bounded_load(served):
    """Of 24 requests from 6 threads 12 find room; the others are told so, and all that were taken end."""
    url, server, gate = served
    found = []

    def work(k):
        for i in range(4):
            asked = {"label": k, "solver": ["euler", "dpmpp-2m", "heun"][i % 3], "steps": 3 + k + i, "seed": 10 * k + i}
            found.append((asked, *ask(f"{url}/submit", asked)))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(status for _, status, _ in found) == [200] * 12 + [503] * 12
    gate.set()
    taken = {json.loads(content)["id"]: asked for asked, status, content in found if status == 200}
    while not all(server.tickets[number][0].done for number in taken):
        time.sleep(0.005)
    for number, asked in taken.items():
        x = server.tickets[number][0].served.x
        cond = {"label": torch.tensor([asked["label"]])}
        options = {name: asked[name] for name in ("solver", "steps", "seed")}
        assert torch.equal(x, ds.sample(server.stepper.model, (1, *SHAPE), cond=cond, **options)[0])
    state = json.loads(ask(f"{url}/state")[1])
    assert {one["status"] for one in state["requests"]} == {"DONE"}
    assert max(state["widths"]) <= 4
    assert ask(f"{url}/submit", {"label": 1, "solver": "euler", "steps": 2, "seed": 0})[0] == 200
    assert len(server.tickets) <= 9  # eight that have ended, and this one


def test_pictures_and_what_is_refused(served, example):
    url, server, gate = served
    gate.set()
    number = json.loads(ask(f"{url}/submit", {"label": 2, "solver": "euler", "steps": 3, "seed": 1})[1])["id"]
    while not server.tickets[number][0].done:
        time.sleep(0.005)
    status, content = ask(f"{url}/{number}.png?x")
    assert status == 200
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    at = content.index(b"IDAT")
    length = int.from_bytes(content[at - 4 : at], "big")
    lines = zlib.decompress(content[at + 4 : at + 4 + length])
    want = ((server.tickets[number][0].served.x[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    assert [list(lines[9 * i + 1 : 9 * i + 9]) for i in range(8)] == want.tolist()
    assert b"<title>diffsolve" in ask(url)[1]
    for path, value, wanted in (
        ("/nothing", None, 404), ("/99.png", None, 404), ("/cancel", {"id": 99}, 404),
        ("/submit", {"label": 1, "steps": 0}, 400), ("/submit", {"label": 1, "steps": 3, "solver": "no"}, 400),
        ("/submit", {"x": "y" * 20000}, 413),
    ):  # fmt: skip
        assert ask(url + path, value)[0] == wanted, (path, value)
    assert ask(f"{url}/cancel", {"id": number})[0] == 200

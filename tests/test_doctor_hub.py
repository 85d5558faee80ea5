"""The hub as the doctor finds it, against a server on this machine: reached or not, by what; never a token."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from latentmill.doctor import hub
from latentmill.doctor.findings import Finding

TOKEN = "hf_a_secret_that_is_never_shown"
COMMIT = "0" * 39 + "1"
_FINDINGS = """
import json
from dataclasses import asdict
from latentmill.doctor import hub
print(json.dumps([asdict(finding) for finding in hub.findings(2.0)]))
"""


class Hub(BaseHTTPRequestHandler):
    """What of the hub the doctor asks for. server.status: of the file. server.hang: seconds before an answer."""

    server: Loopback

    def do_HEAD(self) -> None:
        self.server.asked.append(self.headers.get("Authorization"))
        time.sleep(self.server.hang)
        self.send_response(self.server.status)
        for name, value in (("ETag", '"1"'), ("X-Repo-Commit", COMMIT), ("Content-Length", "2")):
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        body = json.dumps({"name": "somebody"} if known else {"error": "Invalid credentials"}).encode()
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *told: object) -> None:
        pass


class Loopback(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hub)
        self.status, self.hang = 200, 0.0
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Loopback]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    with Loopback() as made:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", made.url)
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()


def found(seconds: float = 2.0) -> dict[str, Finding]:
    return {finding.name: finding for finding in hub.findings(seconds)}


def test_a_hub_that_answers(server: Loopback) -> None:
    told = found()
    assert told["access"].state == "ok"
    assert server.url in told["access"].value
    assert (told["token"].state, told["token"].value) == ("absent", "none")
    assert "flux.1" in told["token"].advice
    assert server.asked == [None]


@pytest.mark.parametrize(("token", "state"), [(TOKEN, "ok"), (TOKEN + "_old", "warning")])
def test_a_token_is_tried_and_never_shown(
    server: Loopback, token: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    told = found()["token"]
    assert (told.state, told.value.startswith("by HF_TOKEN")) == (state, True)
    assert TOKEN not in str(told)
    assert bool(told.advice) == (state == "warning")


@pytest.mark.parametrize("status", [404, 403, 500])
def test_what_answers_and_is_no_hub(server: Loopback, status: int) -> None:
    server.status = status
    told = found()["access"]
    assert told.state == "warning"
    assert f"answers {status}" in told.value
    assert "mirror" in told.advice


def test_a_hub_that_hangs_is_waited_for_no_longer_than_told(server: Loopback) -> None:
    server.hang = 3.0
    start = time.monotonic()
    told = found(0.3)["access"]
    assert time.monotonic() - start < 3.0
    assert told.state == "warning" and "cannot be reached" in told.value
    assert "HF_HUB_OFFLINE=1" in told.advice


def test_no_hub_at_all(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    told = found()
    assert told["access"].state == "warning"
    assert told["token"].value == "by HF_TOKEN, not tried"


@pytest.mark.parametrize("offline", ["0", "1"])
def test_the_environment_is_respected(server: Loopback, offline: str, tmp_path: Path) -> None:
    own = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": offline, "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN}
    done = subprocess.run(
        [sys.executable, "-c", _FINDINGS], capture_output=True, text=True, timeout=60, env={**os.environ, **own}
    )
    assert done.returncode == 0, done.stderr
    access, token = json.loads(done.stdout)
    assert server.url in access["value"]
    assert TOKEN not in done.stdout + done.stderr
    if offline == "1":
        assert access["state"] == "absent" and "HF_HUB_OFFLINE" in access["value"]
        assert server.asked == [] and token["value"] == "by HF_TOKEN, not tried"
    else:
        assert access["state"] == "ok" and "by HF_ENDPOINT" in access["value"]
        assert token["value"] == "by HF_TOKEN: the hub knows it"


def test_an_address_is_shown_without_its_password() -> None:
    assert hub.shown_url("https://me:secret@mirror.example:8443/hub?key=1") == "https://mirror.example:8443/hub"

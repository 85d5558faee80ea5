"""Digests of weights: read once a process, and again when the file is another."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from latentmill.encoders import hub


def test_weights_are_read_once_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    read: list[Path] = []
    digest_file = hub.digest_file

    def noted(path: Path) -> str:
        read.append(path)
        return digest_file(path)

    monkeypatch.setattr(hub, "digest_file", noted)
    for content in (b"one", b"two"):  # of one size
        if file.read_bytes() != content:
            file.write_bytes(content)
        for _ in range(2):
            assert hub.weights_digest(tmp_path, "model", "m", is_local=True) == hashlib.sha256(content).hexdigest()
    assert len(read) == 2

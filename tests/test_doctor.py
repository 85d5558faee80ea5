"""The doctor: sound where all is sound, and every fault that it looks for is found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from latentmill.doctor import Finding, broken, devices, machine, models, pictures, software
from latentmill.doctor.report import show
from latentmill.errors import ModelError
from latentmill.terminal import out
from support import cli


def test_this_machine_is_sound() -> None:
    done = cli("doctor", "--json", "--quick", timeout=300)
    told = json.loads(done.stdout)
    assert (told["version"], told["sound"]) == (1, True)
    assert told["warnings"] == sum(
        each["state"] == "warning" for group in told.values() if isinstance(group, dict) for each in group.values()
    )
    assert done.returncode == 0
    assert told["versions"]["torch"]["state"] == "ok"
    assert told["pictures"]["decoding compared"]["state"] == "ok"
    assert told["pictures"]["resizing compared"]["state"] == "ok"
    assert told["models"]["mini"]["state"] == "ok"


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = [
        Finding("pictures", "JPEG decoders", "simplejpeg 1.9.0 (libjpeg-turbo 3.1.2), Pillow 13.0.0 (libjpeg-turbo 3)"),
        Finding("machine", "memory", "1.2 GB", "warning", "little: use fewer --num-workers and a smaller --batch-size"),
        Finding("models", "mini", "cannot be run", "broken", "pip install -U diffusers transformers accelerate"),
    ]
    monkeypatch.setattr(out, "_width", columns)
    show(findings)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[-1] == "1 thing broken, 1 warning"
    assert "pip install -U diffusers transformers" in " ".join(" ".join(lines).split())


def test_a_decoder_that_differs_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def brighter(data: bytes) -> np.ndarray:
        pixels, _ = pictures.decode(data)
        changed = pixels.copy()
        changed[0, 0, 0] ^= 1
        return changed

    monkeypatch.setattr(pictures, "pillow_pixels", brighter)
    found = {finding.name: finding for finding in pictures.findings()}
    assert found["decoding compared"].state == "broken"
    assert "up to 1 of 255" in found["decoding compared"].value
    assert broken(found.values())


def test_a_resampler_that_differs_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = pictures.CROPS["center-crop-dhariwal"]

    def off_by_one(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
        found = exact(pixels, width, height)
        assert found is not None
        changed = found.copy()
        changed[-1, -1] ^= 1
        return changed

    monkeypatch.setitem(pictures.CROPS, "center-crop-dhariwal", off_by_one)
    found = {finding.name: finding.state for finding in pictures.findings()}
    assert found["resizing compared"] == "broken"


def test_a_resampler_that_fell_back_is_a_warning_with_the_reason() -> None:
    code = "from latentmill.doctor import pictures; print([f for f in pictures.findings() if f.name == 'resampler'][0])"
    environment = {**os.environ, "LATENTMILL_RESAMPLER": "pillow"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "state='warning'" in told.stdout
    assert "pillow: LATENTMILL_RESAMPLER" in told.stdout


def test_what_is_left_to_other_libraries_is_told_with_the_reason() -> None:
    code = (
        "from latentmill.doctor import pictures; print(*[f'{f.name}={f.value}' for f in pictures.findings()], sep='|')"
    )
    environment = {**os.environ, "LATENTMILL_JPEG": "libjpeg", "LATENTMILL_SHA256": "openssl"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    found = dict(each.split("=", 1) for each in told.stdout.strip().split("|"))
    assert found["baseline JPEGs"] == "libjpeg-turbo: LATENTMILL_JPEG is libjpeg"
    assert found["SHA-256"] == "OpenSSL: LATENTMILL_SHA256 is openssl"


def test_draws_without_the_compiled_module_are_a_warning_with_the_reason() -> None:
    code = (
        "import sys; sys.modules['latentmill.transforms._resample'] = None; from latentmill.doctor import pictures;"
        ' print([f for f in pictures.findings() if f.name == "loaders\' draws"][0])'
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "state='warning'" in told.stdout
    assert "NumPy: the compiled module cannot be used: it was not built" in told.stdout


def test_packages_that_are_missing_or_too_old_are_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert software.installed("numpy>=1.0")[2]
    assert software.installed("no-such-package>=1")[1:] == ("", False)
    assert software.installed("numpy>=1000")[2] is False
    assert software.installed("no-such-package>=1; python_version < '3'")[2]
    asked = ["numpy>=1000", "no-such-package>=2", "no-such-extra>=3; extra == 'ray'", "pillow>=10"]
    monkeypatch.setattr(software, "requires", lambda name: asked)
    found = {(finding.group, finding.name): finding for finding in software.findings()}
    assert found["versions", "numpy"].state == "broken"
    assert found["versions", "numpy"].advice == "too old: pip install -U 'numpy>=1000'"
    assert found["versions", "no-such-package"].advice == "pip install 'no-such-package>=2'"
    assert found["versions", "pillow"].state == "ok"
    ray = software._extra("ray")
    assert (ray.state, ray.advice) == ("absent", "pip install 'latentmill[ray]'")


def test_the_file_system_is_that_of_the_innermost_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/vda / ext4 rw 0 0\nserver:/a /data nfs4 rw 0 0\n/dev/vdb /data/my\\040disk xfs rw 0 0\n"
        "tmpfs /database tmpfs rw 0 0\n"
    )
    for folder, kind in {"/home": "ext4", "/data": "nfs4", "/data/x": "nfs4", "/data/my disk/y": "xfs"}.items():
        assert machine.file_system(Path(folder), mounts) == kind
    assert machine.file_system(Path("/home"), tmp_path / "none") == ""


def test_a_full_disk_and_a_network_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage._replace(free=10_000_000))
    assert machine._disk(Path.cwd()).state == "warning"
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage._replace(free=10**12))
    monkeypatch.setattr(machine, "file_system", lambda folder: "nfs4")
    assert ".zip" in machine._disk(Path.cwd()).advice
    monkeypatch.setattr(machine, "file_system", lambda folder: "ext4")
    assert machine._disk(Path.cwd()).state == "ok"


def test_a_model_that_cannot_be_run_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object, **settings: object) -> None:
        raise ModelError("mini cannot be loaded: its weights are damaged")

    monkeypatch.setattr("latentmill.outputs.common.vae_spec", fails)
    assert models._encodes().state == "broken"


def test_offline_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert [finding.name for finding in models._offline()] == ["HF_HUB_OFFLINE"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert not models._offline()


class _Device:
    """A PyTorch as far as the doctor asks: one that computes wrongly, or fails."""

    def __init__(self, value: int, cuda: str | None = None, error: str = "") -> None:
        self.value, self.error = value, error
        self.version = type("version", (), {"cuda": cuda})

    def ones(self, *shape: int, device: str) -> np.ndarray:
        if self.error:
            raise RuntimeError(self.error)
        return np.full(shape, self.value)


def test_a_device_that_computes_wrongly_or_fails_is_broken() -> None:
    assert devices._tried(_Device(1), "cuda:0", "H100").state == "ok"
    assert devices._tried(_Device(2), "cuda:0", "H100").state == "broken"
    failed = devices._tried(_Device(1, error="no kernel image is available"), "cuda:0", "H100")
    assert failed.state == "broken"
    assert "no kernel image" in failed.value


def test_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n")
    assert devices.driver_version(driver) == "550.54.15"
    assert devices.driver_version(tmp_path / "none") == ""
    monkeypatch.setattr(devices, "_ANY_GPU", ())
    monkeypatch.setattr(devices, "driver_version", lambda: "")
    assert devices._no_cuda(_Device(1)).state == "absent"
    monkeypatch.setattr(devices, "driver_version", lambda: "550.54.15")
    assert "built without CUDA" in devices._no_cuda(_Device(1)).value
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "hidden by CUDA_VISIBLE_DEVICES" in devices._no_cuda(_Device(1, "12.4")).value
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert "too old for CUDA 12.4" in devices._no_cuda(_Device(1, "12.4")).advice

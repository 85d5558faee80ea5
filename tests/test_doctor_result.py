"""A result's environment against this one: the doctor says beforehand what a rerun then refuses, and what to do."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import latentmill
from latentmill.doctor import Finding, broken, result
from latentmill.encoders.hub import config_digest
from latentmill.errors import SettingsChangedError, SourceError
from latentmill.files import digest_file
from latentmill.formats.metadata import METADATA_JSON, RECIPE_TOML, Metadata
from latentmill.registry import MINI
from support import TINY_VAE, cli, make_photos

COMMIT = "0123456789" * 4
NAME = "somebody/some-vae"
SETTINGS: dict[str, Any] = {"transform": "center-crop", "resolution": "16x16", "model_url": "fake"}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    make_photos(tmp_path / "photos", 4)
    latentmill.encode(tmp_path / "photos", tmp_path / "made", **SETTINGS)
    return tmp_path / "made"


def changed(made: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Metadata as another machine would have written it."""
    table = json.loads((made / METADATA_JSON).read_text())
    change(table)
    (made / METADATA_JSON).write_text(Metadata.model_validate(table).to_json())


def found(made: Path, ask_hub: bool = False) -> dict[str, Finding]:
    return {finding.name: finding for finding in result.findings(made, ask_hub=ask_hub)}


def test_what_could_be_gone_on_with_is_sound_and_a_rerun_agrees(made: Path) -> None:
    told = found(made)
    assert {finding.state for finding in told.values()} == {"ok"}
    assert told["made"].value == "latents: 4 stored of 4 images"
    assert told["other versions"].value == "the same"
    assert latentmill.encode(made.parent / "photos", made, **SETTINGS).already_done


def test_another_series_is_broken_and_a_rerun_refuses_it(made: Path) -> None:
    changed(made, lambda table: table["fingerprint"].update(pillow="9.5"))
    told = found(made)["pillow"]
    assert (told.state, "made with 9.5" in told.value) == ("broken", True)
    assert "pip install 'pillow==9.5.*'" in told.advice and "--overwrite" in told.advice
    with pytest.raises(SettingsChangedError, match="pillow"):
        latentmill.encode(made.parent / "photos", made, **SETTINGS)


def test_other_versions_are_told_and_refuse_nothing(made: Path) -> None:
    changed(made, lambda table: table["software"].update(numpy="1.0.1", pillow="13.0.77"))
    told = found(made)
    assert "numpy 1.0.1 (here" in told["other versions"].value
    assert not broken(told.values())
    assert latentmill.encode(made.parent / "photos", made, **SETTINGS).already_done


def test_a_device_that_is_not_here(made: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is one")
    changed(made, lambda table: table["fingerprint"].update(device="cuda"))
    told = found(made)["device"]
    assert told.state == "broken" and "cuda" in told.advice
    with pytest.raises(SettingsChangedError, match="device"):
        latentmill.encode(made.parent / "photos", made, **SETTINGS)


def test_a_package_that_is_gone(made: Path) -> None:
    changed(made, lambda table: table["fingerprint"].update(transform="acme-crop", transform_package="acme-mill 1.2"))
    told = found(made)["transform"]
    assert told.state == "broken" and "pip install 'acme-mill==1.2'" in told.advice


def test_a_source_or_recipe_that_is_gone(made: Path) -> None:
    shutil.move(made.parent / "photos", made.parent / "elsewhere")
    told = found(made)["source"]
    assert told.state == "broken" and str(made.parent / "photos") in told.value
    assert f"latentmill run {made / RECIPE_TOML} --set source.path=" in told.advice
    (made / RECIPE_TOML).write_text("= no TOML")
    assert found(made)["recipe"].state == "broken"
    (made / RECIPE_TOML).unlink()
    assert found(made)["recipe"].state == "absent"


def test_what_is_not_finished_or_damaged_or_no_result(made: Path, tmp_path: Path) -> None:
    (made / METADATA_JSON).write_text("{}")
    assert found(made)["metadata"].state == "broken"
    (tmp_path / "other").mkdir()
    for place in ("other", "nowhere"):
        with pytest.raises(SourceError, match="--result must be what latentmill made"):
            result.findings(tmp_path / place)


def test_a_job_that_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_photos(tmp_path / "photos", 4)

    def stop(*told: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("latentmill.job.finish", stop)
        latentmill.encode(tmp_path / "photos", tmp_path / "made", **SETTINGS)
    told = found(tmp_path / "made")["not finished"]
    assert told.state == "warning" and told.value == "4 of 4 images are committed"


def test_several_in_a_folder_and_the_exit_codes(made: Path) -> None:
    latentmill.convert(made.parent / "photos", made.parent / "images", transform="center-crop", resolution="16x16")
    sound = cli("doctor", "--result", made.parent, "--json")
    told = json.loads(sound.stdout)
    assert (sound.returncode, told["sound"], told["version"]) == (0, True, 1)
    assert {"result images", "result made"} < told.keys()
    shutil.rmtree(made.parent / "photos")
    gone = cli("doctor", "--result", made, NO_COLOR="1")
    assert gone.returncode == 1
    assert "put it back" in gone.stdout and "1 thing broken" in gone.stdout


# the model


def told_model(made: Path, folder: Path, name: str, **told: Any) -> None:
    """As if the model in `folder` had made it."""
    config = json.loads((folder / "config.json").read_text())
    weights = digest_file(folder / "diffusion_pytorch_model.safetensors")
    table = {"name": name, "weights_sha256": weights, "config_sha256": config_digest(config), **told}
    changed(made, lambda metadata: metadata["model"].update(table))


def test_a_model_in_a_folder_must_have_the_very_weights(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vae"
    shutil.copytree(TINY_VAE, folder)
    told_model(made, folder, str(folder), is_local=True)
    assert found(made)["model"].state == "ok"
    config, weights = folder / "config.json", folder / "diffusion_pytorch_model.safetensors"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": 1}))
    assert "another config.json" in found(made)["model"].value
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert "other weights" in found(made)["model"].value
    weights.unlink()
    assert found(made)["model"].state == "broken"
    shutil.rmtree(folder)
    gone = found(made)["model"]
    assert (gone.state, "is not there" in gone.value) == ("broken", True) and "put it back" in gone.advice


def test_the_packaged_model(made: Path) -> None:
    told = found(made)["model fake"]
    assert told.state == "ok"
    changed(made, lambda table: table["model"].update(name=MINI, weights_sha256="0" * 64))
    assert "other weights" in found(made)[f"model {MINI}"].value


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


def test_a_model_in_the_cache(made: Path, cache: Path) -> None:
    told_model(made, TINY_VAE, NAME, revision=COMMIT)
    assert found(made)[f"model {NAME}"].state == "warning"  # not there
    snapshot = cache / "models--somebody--some-vae" / "snapshots" / COMMIT
    shutil.copytree(TINY_VAE, snapshot)
    assert found(made)[f"model {NAME}"].value == "on this disk, with the very weights"


class Models(BaseHTTPRequestHandler):
    """The hub's answer of one model, by `server.weights`, its digest; "" where it is gone."""

    def do_GET(self) -> None:
        weights: str = self.server.weights  # type: ignore[attr-defined]
        here = weights and self.path.partition("?")[0].endswith(f"/{NAME}/revision/{COMMIT}")
        file = {"rfilename": "diffusion_pytorch_model.safetensors", "size": 335_000_000}
        lfs = {"sha256": weights, "size": 335_000_000, "pointerSize": 134}
        model = {"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": "config.json", "size": 5}, {**file, "lfs": lfs}]}
        body = json.dumps(model if here else {"error": "Repository not found"}).encode()
        self.send_response(200 if here else 404)
        if not here:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *told: object) -> None:
        pass


def test_a_model_that_the_hub_alone_has(made: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told_model(made, TINY_VAE, NAME, revision=COMMIT)
    right = digest_file(TINY_VAE / "diffusion_pytorch_model.safetensors")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Models) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for weights, state, said in (
            (right, "ok", "the hub has the very weights, 335 MB to download"),
            ("f" * 64, "broken", "the hub has other weights"),
            ("", "broken", "the hub has no such"),
        ):
            server.weights = weights  # type: ignore[attr-defined]
            told = found(made, ask_hub=True)[f"model {NAME}"]
            assert (told.state, said in told.value) == (state, True), told
            assert (state == "ok") == (told.advice == "")
        server.shutdown()
    told = found(made, ask_hub=True)[f"model {NAME}"]
    assert told.state == "warning" and "does not tell" in told.value

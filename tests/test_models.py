"""Finding a model: short names, folders, and a hub that answers as the real one does; every refusal says what to do."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess

import diffusers
import numpy as np
import pytest

from latentmill.encoders.models import resolve
from latentmill.encoders.text_models import resolve_text
from latentmill.encoders.vae import VaeSpec
from latentmill.errors import ModelError
from latentmill.registry import DEFAULT_TEXT_MODEL, MODELS, TEXT_MODELS
from support import DATA, TINY_VAE, cli

WEIGHTS = "diffusion_pytorch_model.safetensors"
TINY_T5 = DATA / "models" / "tiny-t5"


def refusal(name: object, **options: str) -> str:
    with pytest.raises(ModelError) as refused:
        resolve(str(name), **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# names and folders


def test_short_names_are_what_trainers_use() -> None:
    hub = {name: (entry.repository, entry.subfolder) for name, entry in MODELS.items()}
    assert hub == {
        "sd-vae-ft-mse": ("stabilityai/sd-vae-ft-mse", None),
        "sd-vae-ft-ema": ("stabilityai/sd-vae-ft-ema", None),
        "sdxl-vae-fp16-fix": ("madebyollin/sdxl-vae-fp16-fix", None),
        "sdxl-vae": ("stabilityai/sdxl-vae", None),
        "sd3": ("stabilityai/stable-diffusion-3-medium-diffusers", "vae"),
        "flux.1": ("black-forest-labs/FLUX.1-dev", "vae"),
        "flux.2": ("black-forest-labs/FLUX.2-dev", "vae"),
        "dc-ae-f32c32": ("mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers", None),
        "taesd": ("madebyollin/taesd", None),
        "taesdxl": ("madebyollin/taesdxl", None),
        "taesd3": ("madebyollin/taesd3", None),
        "taef1": ("madebyollin/taef1", None),
        "qwen-image": ("Qwen/Qwen-Image", "vae"),
        "wan2.1": ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "vae"),
    }


def test_figures_of_short_names_are_what_trainers_use() -> None:
    scales = {entry.name: (entry.scaling_factor, entry.shift_factor) for entry in MODELS.values()}
    assert [scales[name] for name in ("sd-vae-ft-mse", "sd-vae-ft-ema")] == [(0.18215, None)] * 2
    assert [scales[name] for name in ("sdxl-vae-fp16-fix", "sdxl-vae")] == [(0.13025, None)] * 2
    assert [scales[name] for name in ("sd3", "flux.1")] == [(1.5305, 0.0609), (0.3611, 0.1159)]
    assert scales["dc-ae-f32c32"] == (0.41407, None)
    sizes = {entry.name: (entry.latent_channels, entry.pixel_multiple) for entry in MODELS.values()}
    assert {name for name, size in sizes.items() if size == (4, 8)} == {
        *("sd-vae-ft-mse", "sd-vae-ft-ema", "sdxl-vae-fp16-fix", "sdxl-vae", "taesd", "taesdxl"),
    }
    assert (sizes["flux.2"], sizes["dc-ae-f32c32"]) == ((32, 16), (32, 32))
    for name, class_ in (("flux.2", "AutoencoderKLFlux2"), ("qwen-image", "AutoencoderKLQwenImage")):
        defaults = inspect.signature(getattr(diffusers, class_)).parameters
        key = "z_dim" if "z_dim" in defaults else "latent_channels"
        assert MODELS[name].latent_channels == defaults[key].default
    assert {entry.name for entry in MODELS.values() if not entry.posterior} == {
        *("dc-ae-f32c32", "taesd", "taesdxl", "taesd3", "taef1"),
    }


def test_a_short_name_brings_its_subfolder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata names repository and subfolder, by which `decode` finds the model again."""
    asked = []

    def download(repository: str, revision: str | None, wanted: list[str]) -> Path:
        asked.append((repository, next(Path(name).parent.as_posix() for name in wanted)))
        return snapshot

    monkeypatch.setattr("latentmill.encoders.models.download", download)
    snapshot = tmp_path / "0123abc"
    copied(snapshot / "vae")
    copied(snapshot / "other")
    found = resolve("sd3")
    assert found.folder == snapshot / "vae"
    assert (found.info.name, found.info.subfolder) == (MODELS["sd3"].repository, "vae")
    assert resolve(found.info.name, found.info.revision, found.info.subfolder) == found
    assert resolve("sd3", subfolder="other").folder == snapshot / "other"
    assert asked == [(MODELS["sd3"].repository, folder) for folder in ("vae", "vae", "other")]


def test_a_folder_is_described_by_its_config() -> None:
    model = resolve(str(TINY_VAE))
    assert model.folder == TINY_VAE
    assert (model.info.latent_channels, model.info.downscale_factor) == (4, 8)
    assert model.info.scaling_factor == 0.13025
    assert model.info.shift_factor is None
    assert model.info.weights_sha256 == hashlib.sha256((TINY_VAE / WEIGHTS).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "meant"),
    [("sd-vae-ft-mes", "sd-vae-ft-mse"), ("sdxl-vae-fp16", "sdxl-vae-fp16-fix"), ("minni", "mini")],
)
def test_a_mistyped_short_name_is_answered_with_the_one_that_was_meant(name: str, meant: str) -> None:
    message = refusal(name)
    assert f"no model is called {name!r}" in message
    assert f"Did you mean {meant}?" in message


def test_an_unknown_name_is_answered_with_every_way_to_name_a_model(tmp_path: Path) -> None:
    message = refusal("qqqqqq")
    assert "Did you mean" not in message
    for way in (*MODELS, "mini", "owner/name", "folder"):
        assert way in message
    missing = refusal(tmp_path / "models" / "vae")
    assert "no folder is there" in missing
    file = refusal(TINY_VAE / WEIGHTS)
    assert "folder with config.json" in file
    assert "no folder is there" in refusal("./vae")


def copied(folder: Path, *, without: tuple[str, ...] = (), **config: object) -> Path:
    shutil.copytree(TINY_VAE, folder)
    for name in without:
        (folder / name).unlink()
    if config:
        old = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(old | config))
    return folder


def test_folders_that_are_no_model_say_what_is_missing(tmp_path: Path) -> None:
    assert "no config.json" in refusal(copied(tmp_path / "a", without=("config.json",)))
    assert f"no weights: it needs {WEIGHTS}" in refusal(copied(tmp_path / "b", without=(WEIGHTS,)))
    assert "is a UNet2DModel" in refusal(copied(tmp_path / "c", _class_name="UNet2DModel"))
    assert "lacks block_out_channels or latent_channels" in refusal(copied(tmp_path / "d", latent_channels=None))
    damaged = copied(tmp_path / "e")
    (damaged / "config.json").write_text("{")
    assert "config.json" in refusal(damaged)
    (damaged / "config.json").write_text("[]")
    assert "is not a table" in refusal(damaged)


@pytest.mark.parametrize("pickled", ["diffusion_pytorch_model.bin", "vae.ckpt", "vae.pt"])
def test_pickled_weights_are_never_loaded(tmp_path: Path, pickled: str) -> None:
    folder = copied(tmp_path / "vae", without=(WEIGHTS,))
    (folder / pickled).write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
    message = refusal(folder)
    assert "only pickled weights, which latentmill never loads" in message
    assert WEIGHTS in message


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    folder = copied(tmp_path / "vae")
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    model = resolve(str(folder))
    spec = VaeSpec(model, "cpu", "float32", (-1.0, 1.0), "moments", 0, "float32", 1)
    with pytest.raises(ModelError, match="cannot be loaded") as refused:
        spec.open()
    assert str(folder) in str(refused.value)


def test_a_whole_pipeline_is_answered_with_its_subfolder(tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline"
    copied(pipeline / "vae")
    assert "name its VAE with --subfolder vae" in refusal(pipeline)
    assert resolve(str(pipeline), subfolder="vae").folder == pipeline / "vae"
    assert "has no subfolder unet" in refusal(pipeline, subfolder="unet")


def test_a_shift_factor_is_taken_from_the_config(tmp_path: Path) -> None:
    folder = copied(tmp_path / "vae", shift_factor=0.0609, scaling_factor=1.5305)
    info = resolve(str(folder)).info
    assert (info.shift_factor, info.scaling_factor) == (0.0609, 1.5305)


def test_models_lists_them_with_their_figures() -> None:
    shown = cli("models", COLUMNS="160", NO_COLOR="1")
    assert shown.returncode == 0, shown.stderr
    for name, entry in MODELS.items():
        line = next(line for line in shown.stdout.splitlines() if line.startswith(f"{name} "))
        assert entry.repository in line
        told = f"scale {entry.scaling_factor:g}" if entry.normalization == "scale-shift" else entry.normalization
        assert told in line
    assert re.search(r"^mini .*testing only", shown.stdout, re.M)


# text encoders


def text_refusal(name: object) -> str:
    with pytest.raises(ModelError) as refused:
        resolve_text(str(name))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_short_names_of_text_encoders() -> None:
    assert TEXT_MODELS[DEFAULT_TEXT_MODEL].repository == "PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers"
    assert {TEXT_MODELS[name].width for name in (DEFAULT_TEXT_MODEL, "t5-v1_1-xxl")} == {4096}
    message = text_refusal("pixart-sigma")
    assert "no model is called 'pixart-sigma'" in message
    assert "Did you mean pixart-sigma-t5?" in message
    for way in (*TEXT_MODELS, "mini", "owner/name", "text_encoder/ and tokenizer/"):
        assert way in message


def test_a_text_encoder_is_described_by_its_files(tmp_path: Path) -> None:
    model = resolve_text(str(TINY_T5))
    assert (model.folder_encoder, model.folder_tokenizer) == (TINY_T5 / "text_encoder", TINY_T5 / "tokenizer")
    info = model.info
    assert (info.class_name, info.width, info.is_local) == ("T5EncoderModel", 64, True)
    weights = TINY_T5 / "text_encoder" / "model.safetensors"
    assert info.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    names = ("spiece.model", "tokenizer.json", "tokenizer_config.json")
    tokenizer = b"".join((TINY_T5 / "tokenizer" / name).read_bytes() for name in names)
    assert info.tokenizer_sha256 == hashlib.sha256(tokenizer).hexdigest()

    copy = tmp_path / "t5"
    shutil.copytree(TINY_T5, copy)
    (copy / "tokenizer" / "README.md").write_text("no part of a tokenizer")
    assert resolve_text(str(copy)).info == info.model_copy(update={"name": str(copy)})
    (copy / "tokenizer" / "special_tokens_map.json").write_text("{}")
    assert resolve_text(str(copy)).info.tokenizer_sha256 != info.tokenizer_sha256


def test_folders_that_are_no_text_encoder_say_what_is_missing(tmp_path: Path) -> None:
    def copied_t5(name: str, *without: str, **config: object) -> Path:
        folder = tmp_path / name
        shutil.copytree(TINY_T5, folder)
        for path in without:
            (folder / path).unlink()
        file = folder / "text_encoder" / "config.json"
        if file.is_file():
            file.write_text(json.dumps(json.loads(file.read_text()) | config))
        return folder

    assert "no text_encoder/config.json and no config.json" in text_refusal(copied_t5("a", "text_encoder/config.json"))
    weightless = copied_t5("b", "text_encoder/model.safetensors")
    assert "no weights: it needs model.safetensors" in text_refusal(weightless)
    (weightless / "text_encoder" / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
    assert "only pickled weights, which latentmill never loads" in text_refusal(weightless)
    assert "is a bert; captions are encoded with a T5EncoderModel" in text_refusal(copied_t5("c", model_type="bert"))
    assert "is a AutoencoderKL" in text_refusal(TINY_VAE)
    assert "lacks d_model" in text_refusal(copied_t5("d", d_model=None))
    bare = copied_t5("e", "tokenizer/spiece.model", "tokenizer/tokenizer.json")
    assert "no tokenizer: it needs spiece.model or tokenizer.json in tokenizer/" in text_refusal(bare)
    assert "no tokenizer" in text_refusal(bare / "text_encoder")
    assert "no text_encoder/config.json" in text_refusal(tmp_path)


# the hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_a_token_of_the_tests"


class Hub(BaseHTTPRequestHandler):
    """The few answers of the hub that a download asks for, with its status codes and error headers."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, b"{}", X_Error_Code=code, X_Error_Message="see the code", Content_Type="application/json")

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        path = self.path.partition("?")[0]
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if match := re.fullmatch(r"/api/models/(there/\w+)/revision/(.+)", path):
            if match[2] not in ("main", COMMIT):
                return self.refuse(404, "RevisionNotFound")
            info = {"id": match[1], "modelId": match[1], "sha": COMMIT, "siblings": [], "private": False, "tags": []}
            return self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
        if match := re.fullmatch(rf"/api/models/there/(\w+)/tree/{COMMIT}", path):
            files = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": self.etag(file)}
                for name, file in self.files(match[1]).items()
            ]
            return self.answer(200, json.dumps(files).encode(), Content_Type="application/json")
        if match := re.fullmatch(rf"/there/(\w+)/resolve/{COMMIT}/(.+)", path):
            if match[1] == "gated" and not known:
                return self.refuse(401, "GatedRepo")
            file = self.files(match[1])[match[2]]
            return self.answer(200, file.read_bytes(), ETag=f'"{self.etag(file)}"', X_Repo_Commit=COMMIT)
        if path.startswith("/api/models/broken/"):
            return self.answer(503)
        if path.startswith("/api/models/portal/"):
            return self.answer(200, b"<html>Please log in to this network</html>", Content_Type="text/html")
        return self.refuse(401 if not known else 404, "RepoNotFound")

    do_HEAD = do_GET  # noqa: N815

    def do_CONNECT(self) -> None:
        self.answer(407)

    def files(self, repository: str) -> dict[str, Path]:
        """By their path in the repository: that of a VAE, of a text encoder, or of one with pickled weights alone."""
        vae = {name: TINY_VAE / name for name in ("config.json", WEIGHTS)}
        text = {path.relative_to(TINY_T5).as_posix(): path for path in TINY_T5.rglob("*.*")}
        flat = {path.rpartition("/")[2]: file for path, file in text.items() if not path.endswith(".safetensors")}
        extra = dict.fromkeys(("README.md", "pytorch_model.bin", "tokenizer/notes.md"), DATA / "README.md")
        return {"text": text, "pickled": flat}.get(repository, vae) | extra

    def etag(self, file: Path) -> str:
        return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def environment(hub: ThreadingHTTPServer | None, home: Path) -> dict[str, str]:
    """Of a process that knows no hub but this one, and none of this machine's tokens and caches."""
    port = hub.server_address[1] if hub else closed_port()
    return {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": str(home / "hf"),
        "HF_HUB_CACHE": str(home / "hf" / "hub"),
        "HF_TOKEN_PATH": str(home / "hf" / "token"),
        "HF_TOKEN": "",
        "HUGGING_FACE_HUB_TOKEN": "",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def encode(photos: Path, name: str, *options: object, **variables: str) -> CompletedProcess[str]:
    dest = photos.parent / "latents"
    crop = ("--transform", "center-crop", "--resolution", "32x32")
    return cli("encode", "--source", photos, "--dest", dest, "--vae", name, *crop, *options, **variables)


def resolved(name: str, **variables: str) -> str:
    """The revision of a model that is found, in a process of its own: the hub's library reads its settings once."""
    code = f"from latentmill.encoders.models import resolve; print(resolve({name!r}).info.revision)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={**os.environ, **variables}
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def error_line(failed: CompletedProcess[str]) -> str:
    """The one line that a person gets."""
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert "Traceback" not in failed.stderr
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert "fault in latentmill" not in line
    return line


def test_a_repository_that_is_not_there(hub: ThreadingHTTPServer, photos: Path, tmp_path: Path) -> None:
    line = error_line(encode(photos, "gone/nothing", **environment(hub, tmp_path)))
    assert "the hub has no repository gone/nothing" in line
    assert "HF_TOKEN" in line  # it may be private
    assert not (tmp_path / "latents").exists()


def test_a_gated_repository_opens_with_a_token(hub: ThreadingHTTPServer, photos: Path, tmp_path: Path) -> None:
    variables = environment(hub, tmp_path)
    line = error_line(encode(photos, "there/gated", **variables))
    assert "there/gated is gated: accept its terms on its hub page" in line
    assert "HF_TOKEN" in line
    assert resolved("there/gated", **variables | {"HF_TOKEN": TOKEN}) == COMMIT


def test_a_revision_that_is_not_there(hub: ThreadingHTTPServer, photos: Path, tmp_path: Path) -> None:
    line = error_line(encode(photos, "there/tiny", "--revision", "v9", **environment(hub, tmp_path)))
    assert "there/tiny has no revision 'v9'" in line


def test_a_hub_that_cannot_be_reached(photos: Path, tmp_path: Path) -> None:
    line = error_line(encode(photos, "there/tiny", **environment(None, tmp_path)))
    assert "there/tiny is not in the local cache and the hub cannot be reached" in line
    assert "mini" in line


def test_a_hub_that_is_down(hub: ThreadingHTTPServer, photos: Path, tmp_path: Path) -> None:
    assert "broken/vae" in error_line(encode(photos, "broken/vae", **environment(hub, tmp_path)))


def test_a_network_that_answers_for_the_hub(hub: ThreadingHTTPServer, photos: Path, tmp_path: Path) -> None:
    line = error_line(encode(photos, "portal/vae", **environment(hub, tmp_path)))
    assert "could not download portal/vae" in line


def test_a_proxy_that_refuses(hub: ThreadingHTTPServer, photos: Path, tmp_path: Path) -> None:
    proxy = f"http://127.0.0.1:{hub.server_address[1]}"
    variables = environment(hub, tmp_path) | {"HF_ENDPOINT": "https://hub.invalid", "NO_PROXY": "", "no_proxy": ""}
    line = error_line(encode(photos, "there/tiny", **variables, HTTPS_PROXY=proxy, https_proxy=proxy))
    assert "could not download there/tiny: 407" in line


def test_offline_mode_asks_nobody(hub: ThreadingHTTPServer, photos: Path, tmp_path: Path) -> None:
    before = len(hub.asked)
    line = error_line(encode(photos, "there/tiny", **environment(hub, tmp_path) | {"HF_HUB_OFFLINE": "1"}))
    assert "HF_HUB_OFFLINE is set" in line
    assert "give the folder" in line
    assert len(hub.asked) == before


@pytest.mark.parametrize("name", ["there/bad name", "there/two--dashes", "there/" + 120 * "x"])
def test_a_name_that_no_repository_can_have(hub: ThreadingHTTPServer, photos: Path, tmp_path: Path, name: str) -> None:
    line = error_line(encode(photos, name, **environment(hub, tmp_path)))
    assert f"{name!r} can be no hub repository" in line


def test_a_download_is_used_and_then_found_offline(hub: ThreadingHTTPServer, photos: Path, tmp_path: Path) -> None:
    """Only the config and the safetensors weights are fetched, and the commit is kept in the metadata."""
    before = len(hub.asked)
    variables = environment(hub, tmp_path)
    done = encode(photos, "there/tiny", **variables)
    assert done.returncode == 0, done.stderr
    assert not [path for path in hub.asked[before:] if "README" in path]
    latents = tmp_path / "latents"
    metadata = json.loads((latents / "latentmill.json").read_text())
    assert metadata["model"]["name"] == "there/tiny"
    assert metadata["model"]["revision"] == COMMIT
    found = np.stack([np.load(path) for path in sorted(latents.rglob("*.npy"))])
    assert found.shape == (12, 8, 4, 4)
    assert np.isfinite(found).all()

    asked = len(hub.asked)
    assert resolved("there/tiny", **variables | {"HF_HUB_OFFLINE": "1"}) == COMMIT
    assert len(hub.asked) == asked


def found_text(name: str, **variables: str) -> str:
    """As `resolved`, of a text encoder; what it is refused with is told too."""
    code = (
        "from latentmill.encoders.text_models import resolve_text; from latentmill.errors import ModelError\n"
        f"try: model = resolve_text({name!r}); print(model.info.revision, model.folder_tokenizer.name)\n"
        "except ModelError as error: print(error)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={**os.environ, **variables}
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def test_of_a_text_encoder_only_what_is_needed_is_downloaded(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    before = len(hub.asked)
    variables = environment(hub, tmp_path)
    assert found_text("there/text", **variables) == f"{COMMIT} tokenizer"
    fetched = {path.partition(COMMIT)[2] for path in hub.asked[before:] if "/resolve/" in path}
    assert fetched == {
        *("/text_encoder/config.json", "/text_encoder/model.safetensors"),
        *("/tokenizer/spiece.model", "/tokenizer/tokenizer.json", "/tokenizer/tokenizer_config.json"),
    }
    assert found_text("there/text", **variables | {"HF_HUB_OFFLINE": "1"}) == f"{COMMIT} tokenizer"


def test_a_repository_of_pickled_weights_alone_is_refused(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    message = found_text("there/pickled", **environment(hub, tmp_path))
    assert message.startswith("there/pickled has no safetensors weights, and latentmill never loads pickled ones")
    assert not any("pytorch_model.bin" in path for path in hub.asked)

"""An installed package that brings one of each kind by entry point, for tests: what a build tool would put there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

Points = Mapping[str, Mapping[str, str]]  # by kind (`sources`, …), names and what they stand for

ACME: Points = {
    "sources": {"photo-list": "acme_mill:PhotoList"},
    "transforms": {"squares": "acme_mill:squares", "halves": "acme_mill:halves"},
    "encoders": {"blocks": "acme_mill:blocks"},
    "formats": {"packed": "acme_mill:Packed", "stray": "acme_mill:Stray"},
    "runners": {"backwards": "acme_mill:backwards", "idle": "acme_mill:idle"},
}

MODULE = '''
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

from latentmill.encoders.fake import FAKE_INFO, FakeSpec
from latentmill.formats.payload import npy_array, npy_bytes
from latentmill.records import Listing, SampleRef
from latentmill.runners.local import run_local
from latentmill.transforms.crop import center_crop

if "ACME_IMPORTED" in os.environ:
    Path(os.environ["ACME_IMPORTED"]).touch()

RUNS, REQUESTS = [], []


class PhotoList:
    """The photos that a text file names, a line each. options: `skip`, so many of the first, and `order`."""

    def __init__(self, path, options):
        self.root, self.path, self.options = path.parent, path, options

    def read(self, ref):
        return (self.root / ref.key).read_bytes()

    def listing(self, max_images=None):
        keys = sorted(self.path.read_text().split())[self.options.get("skip", 0) :][:max_images]
        if self.options.get("order") == "wrong":
            keys.reverse()
        folders = sorted({key.split("/")[0] for key in keys})
        refs = [SampleRef(n, key, self.stat(key), folders.index(key.split("/")[0])) for n, key in enumerate(keys)]
        return Listing(len(refs), folders, [], False, lambda: iter(refs))

    def stat(self, key):
        stat = (self.root / key).stat()
        return f"{stat.st_size}-{stat.st_mtime_ns}"


def squares(pixels, width, height):
    return center_crop(pixels, width, height)


def halves(pixels, width, height):
    return center_crop(pixels, width // 2, height // 2)


class Blocks(FakeSpec):
    pass


def blocks(request):
    REQUESTS.append(request)
    return Blocks(request.save_dtype), FAKE_INFO.model_copy(update={"name": "blocks", "class_name": "blocks"})


@dataclass(frozen=True)
class Packed:
    """Deflated arrays, by key."""

    statistic: str
    kind = "latents"
    labelled = False

    @property
    def code(self):
        return f"packed/v1/{self.statistic}"

    def name(self, number, key=""):
        return f"{key}.packed"

    def to_bytes(self, array, beside=()):
        return zlib.compress(npy_bytes(array))

    def from_bytes(self, data):
        try:
            return npy_array(zlib.decompress(data))
        except zlib.error as error:
            raise ValueError(str(error)) from error


class Stray(Packed):
    code = "elsewhere/moments"


def backwards(task, units, workers, emit):
    RUNS.append(workers)
    run_local(task, units[::-1], workers, emit)


def idle(task, units, workers, emit):
    pass
'''


def install(site: Path, name: str, points: Points, version: str = "1.0") -> None:
    """What makes a package an installed one: its metadata, in a folder of `sys.path`."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        f"[latentmill.{kind}]\n" + "\n".join(f"{short} = {value}" for short, value in names.items()) + "\n"
        for kind, names in points.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))


def install_acme(site: Path) -> Path:
    """`acme-mill 1.0`; gives the folder for `sys.path`."""
    install(site, "acme-mill", ACME)
    (site / "acme_mill.py").write_text(MODULE)
    return site

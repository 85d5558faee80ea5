"""Synthetic datasets of ImageNet's size: metadata and index of every sample, and the data of the few that are read.

Also the program that opens one, in a process of its own:

    python benchmarks/reading_scale.py LATENTS [--images IMAGES] [--text TEXT] [--read 3000]
"""

from __future__ import annotations

import argparse
import json
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from latentmill.files import LineDigest
from latentmill.formats.columns_writer import ColumnsWriter, Row, write_columns
from latentmill.formats.metadata import (
    DATASET_JSON,
    INDEX_COLUMNS,
    INDEX_JSONL,
    METADATA_JSON,
    Counts,
    LatentInfo,
    Metadata,
    ModelInfo,
    TextInfo,
)
from latentmill.formats.payload import npy_bytes, png_bytes
from latentmill.formats.pixart import PixArtText
from latentmill.formats.repa import ImageLayout, LatentLayout
from latentmill.formats.stored_zip import directory_entry, end_records, local_header
from latentmill.stages import Layout

IMAGENET = 1_281_167
SIDE = 256
KINDS = ("latents", "images", "text")


def make(
    root: Path, rows: int = IMAGENET, real: int = 3000, columns: bool = True, only: Sequence[str] = KINDS
) -> dict[str, Path]:
    """`latents` and `images` as folders and zips, and `text`; by name. columns: False, as earlier versions made them.

    real: samples that are there to be read; of a folder they are links to one file, a zip is sparse.
    """
    noise = np.random.default_rng(0)
    chosen = set(noise.choice(rows, min(real, rows), replace=False).tolist())
    moments = npy_bytes(noise.standard_normal((8, SIDE // 8, SIDE // 8)).astype(np.float32))
    picture = png_bytes(noise.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    caption = PixArtText("multi").to_bytes(noise.standard_normal((20, 64)).astype(np.float16))
    kinds: dict[str, tuple[Layout, bytes]] = {
        "latents": (LatentLayout(), moments),
        "images": (ImageLayout(), picture),
        "text": (PixArtText("multi"), caption),
    }
    found = {}
    for kind in only:
        layout, data = kinds[kind]
        for ending in ("", ".zip") if kind != "text" else ("",):
            path = root / f"{kind}{ending}"
            (_zip if ending else _folder)(path, kind, layout, data, rows, chosen, columns)
            found[f"{kind}{ending}"] = path
    return found


def key_of(number: int) -> str:
    return f"n{number // 1300:08d}/n{number // 1300:08d}_{number:07d}.JPEG"


def _index(
    folder: Path, kind: str, layout: Layout, data: bytes, rows: int, in_zip: bool, columns: bool
) -> Iterator[str]:
    """Write metadata, lines and columns to `folder`, and give every name on the way."""
    digest, writer, size, crc = LineDigest(), ColumnsWriter(folder, in_zip), len(data), zlib.crc32(data)
    text = kind == "text"
    with (folder / INDEX_JSONL).open("w") as lines:
        for number in range(rows):
            key, name = key_of(number), layout.name(number, key_of(number))
            source = f"{number * 0x9E3779B97F4A7C15 % 2**128:032x}"
            about = f"a photo, as a person might tell of it, that is number {number}" if text else None
            row = Row(number, key, number // 1300, source, name, size, source[::-1], crc, None, about)
            writer.add(row)
            told = {"index": number, "key": key, "stat": "110000-1700000000000000000", "label": number // 1300}
            told |= {"source": source} | ({"caption": about, "tokens": 20} if text else {})
            told |= {"name": name, "size": size, "digest": row.digest, "crc": crc}
            line = json.dumps(told, separators=(",", ":")) + "\n"
            digest.add(line)
            lines.write(line)
            yield name
    if columns:
        write_columns(folder / INDEX_COLUMNS, writer, digest.hex())
    (folder / METADATA_JSON).write_text(_metadata(kind, layout, rows, digest.hex()).to_json())


def _metadata(kind: str, layout: Layout, rows: int, index_digest: str) -> Metadata:
    latent = LatentInfo(shape=[8, SIDE // 8, SIDE // 8], dtype="float32", statistic="moments", pixel_range=(-1, 1),
                        compute_dtype="float32")  # fmt: skip
    model = ModelInfo(name="made up", class_name="AutoencoderKL", weights_sha256="", config_sha256="",
                      latent_channels=4, downscale_factor=8, scaling_factor=0.18215)  # fmt: skip
    text = TextInfo(label="prompt", max_length=77, padded=False, dtype="float16", width=64, compute_dtype="float32",
                    empty="latentmill-empty.npz")  # fmt: skip
    return Metadata(
        kind=kind,  # type: ignore[arg-type]
        layout=layout.code,
        counts=Counts(listed=rows, stored=rows, rejected=0, skipped=0),
        image_size=(SIDE, SIDE) if kind == "images" else None,
        latent=latent if kind == "latents" else None,
        model=model if kind == "latents" else None,
        text=text if kind == "text" else None,
        source_digest="made up",
        index_digest=index_digest,
        fingerprint={},
        software={},
    )


def _folder(path: Path, kind: str, layout: Layout, data: bytes, rows: int, chosen: set[int], columns: bool) -> None:
    path.mkdir(parents=True)
    original = path / "one"
    original.write_bytes(data)
    for number, name in enumerate(_index(path, kind, layout, data, rows, False, columns)):
        if number in chosen:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            _copy(original, path / name, data)
    original.unlink()


def _copy(original: Path, path: Path, data: bytes) -> None:
    try:
        os.link(original, path)
    except OSError:  # more links than the filesystem allows, or none
        path.write_bytes(data)


def _zip(path: Path, kind: str, layout: Layout, data: bytes, rows: int, chosen: set[int], columns: bool) -> None:
    folder = path.with_suffix(".beside")
    folder.mkdir(parents=True)
    crc, offset = zlib.crc32(data), 0
    with path.open("wb") as archive, (folder / "directory").open("w+b") as directory:
        for number, name in enumerate(_index(folder, kind, layout, data, rows, True, columns)):
            header = local_header(name, len(data), crc)
            directory.write(directory_entry(name, len(data), crc, offset))
            if number in chosen:
                archive.seek(offset)
                archive.write(header + data)
            offset += len(header) + len(data)
        (folder / DATASET_JSON).write_text('{"labels": null}')
        archive.seek(offset)
        names = [INDEX_JSONL, *([INDEX_COLUMNS] if columns else []), DATASET_JSON, METADATA_JSON]
        for name in names:
            content = (folder / name).read_bytes()
            directory.write(directory_entry(name, len(content), zlib.crc32(content), archive.tell()))
            archive.write(local_header(name, len(content), zlib.crc32(content)) + content)
        start, size = archive.tell(), directory.tell()
        directory.seek(0)
        while block := directory.read(1 << 20):
            archive.write(block)
        archive.write(end_records(rows + len(names), size, start))


# the program that opens one


def memory() -> dict[str, int]:
    """Bytes of this process: resident, its share of them, and what no other process has."""
    told = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    kilobytes = {name: int(value.split()[0]) << 10 for name, value in told.items()}
    own = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return {"rss": kilobytes["Rss"], "pss": kilobytes["Pss"], "own": own}


def chosen_of(rows: int, real: int) -> list[int]:
    """The samples that `make` made for real."""
    return np.random.default_rng(0).choice(rows, min(real, rows), replace=False).tolist()  # type: ignore[no-any-return]


def opened(latents: Path, images: Path | None, text: Path | None, read: int, made: int) -> dict[str, object]:
    """Seconds of opening, with and without the imports, and the memory of a worker that has read samples."""
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    with_torch = memory()
    begun = time.perf_counter()
    import latentmill

    latentmill.load  # noqa: B018 - imports the loaders
    imported = memory()
    start, cpu = time.perf_counter(), time.process_time()
    dataset = latentmill.load(latents, images, text=None if text is None else [text])
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu

    def last_memory(samples: list[dict[str, object]]) -> dict[str, int]:
        return memory()

    sampler = chosen_of(len(dataset), made)[:read]
    loader = DataLoader(
        dataset, batch_size=8, sampler=sampler, num_workers=2, collate_fn=last_memory, multiprocessing_context="fork"
    )
    workers = list(loader)
    return {
        "samples": len(dataset),
        "seconds": seconds,
        "cpu": cpu,
        "import_seconds": start - begun,
        "after_torch": with_torch,
        "after_import": imported,
        "opened": memory(),
        "worker": workers[-1] if workers else {},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("latents", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--read", type=int, default=3000)
    parser.add_argument("--made", type=int, default=3000)
    options = parser.parse_args(arguments)
    print(json.dumps(opened(options.latents, options.images, options.text, options.read, options.made)))


if __name__ == "__main__":
    main()

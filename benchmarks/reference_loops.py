"""The whole programs that latentmill is measured against, each a process of its own.

python benchmarks/reference_loops.py sequential SOURCE DEST SIDE   decode, dhariwal crop, stored PNG; Pillow; one
                                                                   image after the other; DEST a folder or .zip
python benchmarks/reference_loops.py pool SOURCE DEST SIDE         the scheme of a parallel fork: 4 processes,
                                                                   PNG level 1, results polled for every 0.1 s
python benchmarks/reference_loops.py decode SOURCE WORKERS         simplejpeg alone, in as many processes
python benchmarks/reference_loops.py calls SOURCE DEST SIDE WORKERS  what latentmill calls for each photo, and nothing
                                                                   else: no plan, no ledger, no sync, no restart
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path

POOL_PROCESSES, POOL_LEVEL, POLL_SECONDS, POOL_BATCH = 4, 1, 0.1, 32


def photos(source: Path) -> list[Path]:
    """In latentmill's order: by the relative path as text, which is not the order of Path."""
    return sorted(source.rglob("*.jpg"), key=lambda path: path.relative_to(source).as_posix())


def name(number: int) -> str:
    return f"{number:08d}"[:5] + f"/img{number:08d}.png"


def sequential(source: Path, dest: Path, side: int) -> None:
    if dest.suffix == ".zip":
        import zipfile

        with zipfile.ZipFile(dest, "w", compression=zipfile.ZIP_STORED) as archive:
            for number, data in converted(photos(source), side):
                archive.writestr(name(number), data)
        return
    for number, data in converted(photos(source), side):
        target = dest / name(number)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def converted(paths: list[Path], side: int) -> Iterator[tuple[int, bytes]]:
    from reference import center_crop_dhariwal, decoded, png

    for number, path in enumerate(paths):
        yield number, png(center_crop_dhariwal(decoded(path), side, side), 0)


def pool(source: Path, dest: Path, side: int) -> None:
    import reference  # noqa: F401 - once, before the processes are forked

    paths = list(enumerate(photos(source)))
    batches = [paths[start : start + POOL_BATCH] for start in range(0, len(paths), POOL_BATCH)]
    with get_context("fork").Pool(POOL_PROCESSES) as workers:
        waiting = [workers.apply_async(pool_batch, (batch, dest, side)) for batch in batches]
        while waiting:
            waiting = [result for result in waiting if not (result.ready() and result.get())]
            if waiting:
                time.sleep(POLL_SECONDS)


def pool_batch(batch: list[tuple[int, Path]], dest: Path, side: int) -> int:
    from reference import center_crop_dhariwal, decoded, png

    for number, path in batch:
        target = dest / name(number)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(png(center_crop_dhariwal(decoded(path), side, side), POOL_LEVEL))
    return len(batch)


def decode(source: Path, workers: int) -> None:
    import simplejpeg  # noqa: F401 - likewise

    in_processes(decode_some, list(enumerate(photos(source))), workers)


def in_processes(work: Callable[..., None], paths: list[tuple[int, Path]], workers: int, *more: object) -> None:
    """Process k of n takes the photos k, k + n, k + 2n; one worker is this process."""
    if workers == 1:
        work(paths, *more)
        return
    parts = [paths[first::workers] for first in range(workers)]
    processes = [get_context("fork").Process(target=work, args=(part, *more)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            sys.exit(f"a process ended with exit code {process.exitcode}")


def decode_some(paths: list[tuple[int, Path]]) -> None:
    import simplejpeg

    for _, path in paths:
        simplejpeg.decode_jpeg(path.read_bytes())


def calls(source: Path, dest: Path, side: int, workers: int) -> None:
    import latentmill.decoding  # likewise
    import latentmill.formats.payload
    import latentmill.transforms.crop  # noqa: F401

    in_processes(call_some, list(enumerate(photos(source))), workers, dest, side)


def call_some(paths: list[tuple[int, Path]], dest: Path, side: int) -> None:
    from latentmill.decoding import decode
    from latentmill.files import digest, digests, stored_file
    from latentmill.formats.payload import png_bytes
    from latentmill.transforms.crop import center_crop_dhariwal

    for first in range(0, len(paths), 2):  # digests of two files are told side by side
        files = []
        for _, path in paths[first : first + 2]:
            data = path.read_bytes()
            digest(data)
            files.append(png_bytes(center_crop_dhariwal(decode(data)[0], side, side)))
        for (number, _), file, told in zip(paths[first : first + 2], files, digests(files), strict=True):
            stored_file(name(number), file, told)
            target = dest / name(number)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file)


def main() -> None:
    which, source, *rest = sys.argv[1:]
    if which == "decode":
        decode(Path(source), int(rest[0]))
    elif which == "calls":
        calls(Path(source), Path(rest[0]), int(rest[1]), int(rest[2]))
    else:
        {"sequential": sequential, "pool": pool}[which](Path(source), Path(rest[0]), int(rest[1]))


if __name__ == "__main__":
    main()

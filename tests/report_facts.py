"""Made-up facts of datasets of every kind, for the tests of the report's page."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from latentmill.report.facts import (
    BucketFacts,
    Caption,
    CaptionFacts,
    ChannelFacts,
    ClassFacts,
    DatasetFacts,
    Histogram,
    LatentFacts,
    Picture,
    Quality,
    Reject,
    ReportFacts,
    Row,
    Shown,
    SizeFacts,
    Soundness,
    SpeedFacts,
)

BUCKETS = ((512, 512), (448, 576), (576, 448), (384, 640), (640, 384))
HOSTILE = "</script><script>alert(1)</script><img src=https://example.com/x onerror=alert(1)>\"'&{{7*7}}\x00\udcff"


def picture(number: int, size: tuple[int, int] = (24, 24), alt: str = "a made-up picture") -> Picture:
    """A small PNG, another one for each number; size is (height, width)."""
    values = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return Picture(file.getvalue(), "image/png", size[1], size[0], alt)


def shown(number: int, **changed: object) -> Shown:
    """A sample: the higher its number, the better its reconstruction."""
    bucket = BUCKETS[number % len(BUCKETS)]
    small = (bucket[0] // 16, bucket[1] // 16)
    given: dict[str, object] = {
        "name": f"sample-{number:05d}",
        "key": f"photos/{number:03d}.jpg",
        "label": ("cat", "dog")[number % 2],
        "size": (3000, 4000),
        "bucket": bucket,
        "original": picture(
            number, (30, 40) if number % 3 else (60, 40), f"photo {number}, with what is cut away shaded"
        ),
        "model_input": picture(1000 + number, small, f"photo {number}, cropped"),
        "reconstruction": picture(2000 + number, small, f"photo {number}, from its latents"),
        "quality": Quality(20.0 + number, 0.5 + number / 100),
        "cut_away": 0.25,
        "captions": (Caption("prompt", f"a photo of thing {number}", " and what is cut off", 90 + number),),
    }
    return Shown(**{**given, **changed})  # type: ignore[arg-type]


def soundness(**changed: object) -> Soundness:
    given: dict[str, object] = {
        "problems": (), "checked": "everything", "listed": 1000, "stored": 997, "rejected": 3, "skipped": 0,
        "by_reason": (("decode: not an image", 2), ("transform: too small", 1)),
        "some": (
            Reject("photos/bad.jpg", "decode", "not an image"), Reject("x.jpg", "transform", "too small", picture(7)),
        ),
        "notes": (("exif-rotated", 12),),
    }  # fmt: skip
    return Soundness(**{**given, **changed})  # type: ignore[arg-type]


def channel(number: int) -> ChannelFacts:
    edges = np.linspace(-12, 12, 61)
    middle = (edges[:-1] + edges[1:]) / 2
    counts = np.round(10000 * np.exp(-((middle - number) ** 2) / (8 + number))).astype(int)
    return ChannelFacts(number, Histogram(edges, counts, 1, 2), number, 4.5, 0.18215, 0.0, 0.2222, float(number))


def latents(channels: int = 4) -> LatentFacts:
    return LatentFacts(tuple(map(channel, range(channels))), 0.18215, None, 0.21, 0.8, 400, False)


def whole(count: int = 12, many: int = 2, **changed: object) -> DatasetFacts:
    """A dataset that has everything."""
    random = np.random.default_rng(0)
    samples = tuple(shown(number) for number in range(count))
    lengths = random.integers(10, 140, 500)
    given: dict[str, object] = {
        "path": Path("data/vae-sd"), "name": "vae-sd", "kind": "latents",
        "summary": "997 images as latents of sd-vae-ft-mse, in 5 buckets around 512 × 512.",
        "identity": (Row("Model", "sd-vae-ft-mse", "revision 31f26fd"), Row("Transform", "center-crop")),
        "soundness": soundness(),
        "shown": samples, "best": samples[: -count // 4 : -1] if count > 3 else (), "worst": samples[: count // 4],
        "qualities": tuple(sample.quality for sample in samples if sample.quality),
        "sizes": SizeFacts(random.integers(400, 4000, 500), random.integers(400, 6000, 500), 50_000),
        "buckets": tuple(BucketFacts(size, 200 - 30 * at, 0.05 * at, 0.0, 2, (shown(at), shown(at + 5)))
                         for at, size in enumerate(BUCKETS)),
        "bucket_table": BUCKETS,
        "latents": latents(),
        "captions": (CaptionFacts("prompt", "t5-v1_1-xxl", lengths, 77, int((lengths > 77).sum()) * 2, 1000),),
        "classes": ClassFacts(tuple(f"class {n}" for n in range(many)), random.integers(1, 1300, many)),
        "speed": SpeedFacts(62.5, 997, 2, (("read", 3.1), ("decode", 20.0), ("transform", 9.5), ("encode", 88.0)),
                            np.stack([np.linspace(0, 60, 40), np.linspace(0, 997, 40) ** 1.02], axis=1),
                            "Encoding took most of the time: a faster device would help most."),
        "notes": ("No timeline of the first run: it was made by an older version.",),
    }  # fmt: skip
    return DatasetFacts(**{**given, **changed})  # type: ignore[arg-type]


def empty(**changed: object) -> DatasetFacts:
    """A dataset of which nothing is known but that it holds nothing."""
    nothing = Soundness((), "everything", 0, 0, 0, 0)
    given: dict[str, object] = {
        "path": Path("data/none"), "name": "none", "kind": "images", "summary": "No images.", "identity": (),
        "soundness": nothing,
    }  # fmt: skip
    return DatasetFacts(**{**given, **changed})  # type: ignore[arg-type]


def report(*datasets: DatasetFacts) -> ReportFacts:
    sampled = "Drawn from 500 of 50,000 samples, spread evenly."
    return ReportFacts(Path("data"), datasets, sampled, 1.5, {"latentmill": "0.1.0", "torch": "2.13.0"})

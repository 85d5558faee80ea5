"""How a dataset's images are distributed: over sizes, buckets and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from latentmill.errors import ConfigError
from latentmill.records import Array
from latentmill.report.collect_index import NO_LABEL, Opened, Overview, spread
from latentmill.report.collect_photos import Photos
from latentmill.report.facts import BucketFacts, ClassFacts, Shown, SizeFacts
from latentmill.transforms.bucket import BucketTable

SIZES = 4000  # points of a scatter
HEADERS = 1000  # photos whose headers are read for one


def recorded_sizes(seen: Overview) -> SizeFacts | None:
    """Sizes of the source images, where the index has them."""
    if not len(seen.sizes):
        return None
    at = spread(len(seen.sizes), SIZES)
    return SizeFacts(seen.sizes[at, 0], seen.sizes[at, 1], seen.stored)


def sizes_of_headers(photos: Photos, keys: Sequence[str], exif: str, of: int) -> SizeFacts | None:
    """Sizes of these photos by their headers; those that cannot be read are left out."""
    sizes = [size for key in keys if (size := photos.size(key, exif)) is not None]
    if not sizes:
        return None
    found: Array = np.array(sizes, np.int64)
    return SizeFacts(found[:, 0], found[:, 1], of)


def class_facts(dataset: Opened, seen: Overview) -> ClassFacts | None:
    """Images of every class, those without any too; None where images have no labels."""
    labels = seen.labels[seen.labels != NO_LABEL]
    if not len(labels):
        return None
    classes = dataset.metadata.classes
    if classes and labels.min() >= 0 and labels.max() < len(classes):
        return ClassFacts(tuple(classes), np.bincount(labels, minlength=len(classes)))
    values, counts = np.unique(labels, return_counts=True)
    return ClassFacts(tuple(map(str, values.tolist())), counts)


def bucket_table(dataset: Opened) -> tuple[tuple[int, int], ...]:
    """(height, width) of every bucket of the table, in its order; () where there are none."""
    buckets = dataset.metadata.buckets
    if buckets is None:
        return ()
    try:
        return tuple(bucket.size for bucket in BucketTable.from_text(buckets.table).buckets)
    except ConfigError:
        return ()


def bucket_facts(
    dataset: Opened, seen: Overview, shown: Mapping[tuple[int, int], Sequence[Shown]]
) -> tuple[BucketFacts, ...]:
    """Every bucket with images. shown: some samples of each. What was lost is told where the report file tells it."""
    if not len(seen.buckets):
        return ()
    sizes, counts = np.unique(seen.buckets, axis=0, return_counts=True)
    told = _told(dataset)
    found = []
    for (height, width), count in zip(sizes.tolist(), counts.tolist(), strict=True):
        lost, stretched, upscaled = told.get((height, width, count), (None, None, None))
        some = tuple(shown.get((height, width), ()))
        found.append(BucketFacts((height, width), count, lost, stretched, upscaled, some))
    return tuple(found)


def _told(dataset: Opened) -> dict[tuple[int, int, int], tuple[float, float, int]]:
    """What was lost by height, width and images: a report of another state of the dataset has other counts."""
    rows = dataset.report.get("buckets")
    found = {}
    for row in rows if isinstance(rows, list) else ():
        try:
            height, width = row["bucket"]
            key = int(height), int(width), int(row["images"])
            found[key] = float(row["cropped_away"]), float(row["distortion"]), int(row["upscaled"])
        except (KeyError, TypeError, ValueError):
            continue
    return found

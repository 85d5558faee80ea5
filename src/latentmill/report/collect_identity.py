"""What a dataset is, in lines for a person: models, settings, counts, fingerprint, and the software that made it."""

from __future__ import annotations

import json
from collections.abc import Iterator

from latentmill.estimate import human
from latentmill.files import digest
from latentmill.formats.metadata import METADATA_JSON, Metadata, ModelInfo
from latentmill.report.collect_captions import name_of
from latentmill.report.collect_index import Opened, Overview
from latentmill.report.facts import Row
from latentmill.wording import counted, printable

_SHORT = 16  # characters of a digest that are shown
_LONG = frozenset({"bucket_table", "tokenizer"})  # settings that are shown elsewhere, or tell a person nothing


def summary(dataset: Opened) -> str:
    """One sentence of what it is."""
    metadata, stored = dataset.metadata, dataset.metadata.counts.stored
    if metadata.latent is not None and metadata.model is not None:
        where = "in aspect buckets" if metadata.buckets else f"of {_size(metadata)} pixels"
        return f"{counted(stored, 'latents')} ({metadata.latent.statistic}) of {metadata.model.name}, {where}"
    if metadata.text is not None and metadata.text_model is not None:
        return f"Features of {counted(stored, 'captions')} ({name_of(metadata.text)}) by {metadata.text_model.name}"
    if metadata.vision is not None and metadata.vision_model is not None:
        return f"{metadata.vision.tokens.capitalize()} features of {counted(stored, 'images')} by " + (
            metadata.vision_model.name
        )
    decoded = f", decoded from latents by {metadata.model.name}" if metadata.model is not None else ""
    return f"{counted(stored, 'images')} of {_size(metadata)} pixels{decoded}"


def identity(dataset: Opened, seen: Overview) -> tuple[Row, ...]:
    """What it is, line by line; every setting that can change its bytes comes after that."""
    return (*_rows(dataset, seen), *_settings(dataset.metadata), *_software(dataset.metadata))


def _rows(dataset: Opened, seen: Overview) -> Iterator[Row]:
    metadata, counts = dataset.metadata, dataset.metadata.counts
    others = {"rejected": counts.rejected, "skipped": counts.skipped}
    left = [f"{count:,} {name}" for name, count in others.items() if count]
    yield Row("Samples", f"{counts.stored:,}" + (f" of {counts.listed:,} listed; {', '.join(left)}" if left else ""))
    yield Row("On the disk", human(seen.bytes), "the data's files, without index and metadata")
    source = _source(dataset)
    if source:
        yield Row("Source", source, "as the stored recipe names it")
    yield from _model(metadata)
    yield from _latent(metadata)
    yield from _features(metadata)
    yield Row("Layout", metadata.layout or "of the first version", "how files are named and what is in them")
    told = json.dumps(metadata.fingerprint, sort_keys=True)
    yield Row("Fingerprint", digest(told.encode())[:_SHORT], "of every setting and version that can change a byte")
    yield Row("Source's digest", metadata.source_digest[:_SHORT], "of the listing: names, sizes, times, labels")
    yield Row("Index's digest", metadata.index_digest[:_SHORT], f"of every file's digest, as in {METADATA_JSON}")


def _source(dataset: Opened) -> str:
    recipe = dataset.recipe
    return "" if isinstance(recipe, str) else printable(str(recipe.source))


def _size(metadata: Metadata) -> str:
    return "their own" if metadata.image_size is None else "{}x{}".format(*metadata.image_size)


def _model(metadata: Metadata) -> Iterator[Row]:
    model = metadata.model or metadata.text_model or metadata.vision_model
    if model is None:
        return
    revision = f", revision {model.revision}" if model.revision else ""
    yield Row("Model", f"{model.name}{revision}", f"{model.class_name}{', a folder' if model.is_local else ''}")
    yield Row("Weights", model.weights_sha256[:_SHORT], "SHA-256 of every byte of them, its first digits")
    if isinstance(model, ModelInfo):
        yield Row("Normalisation", _normalization(model), "from what is stored to what a trainer is fed")


def _normalization(model: ModelInfo) -> str:
    how = model.normalization
    if how is not None and how.kind != "scale-shift":
        patched = f", after patching {how.patch} x {how.patch}" if how.patch > 1 else ""
        return f"(z - mean) / std of each channel ({how.kind}){patched}"
    scale, shift = (model.scaling_factor, model.shift_factor) if how is None else (how.scaling_factor, how.shift_factor)
    return "none recorded" if scale is None else f"(z - {shift}) x {scale}" if shift else f"z x {scale}"


def _latent(metadata: Metadata) -> Iterator[Row]:
    latent = metadata.latent
    if latent is None:
        return
    shape = " x ".join("by bucket" if side is None else str(side) for side in latent.shape)
    yield Row("Stored", f"{latent.statistic}, {latent.dtype}, {shape}", "channels x height x width, unscaled")
    yield Row("Computed in", latent.compute_dtype)
    low, high = latent.pixel_range
    yield Row("Pixels' range", f"{low:g} to {high:g}", "of the VAE's input")
    if latent.padded_from is not None:
        yield Row("Padded from", "{1}x{0}".format(*latent.padded_from), "width x height")
    if metadata.buckets is not None:
        table, fit = metadata.buckets.table.split()[0], metadata.buckets.fit
        yield Row("Buckets", f"{table}, {fit}", f"by {metadata.buckets.resample} resampling")


def _features(metadata: Metadata) -> Iterator[Row]:
    text, vision = metadata.text, metadata.vision
    if text is not None:
        padded = "padded" if text.padded else "the real tokens"
        yield Row("Stored", f"{text.dtype}, up to {text.max_length} x {text.width}, {padded}", "tokens x width")
        if text.pooled_width is not None:
            yield Row("Pooled vector", str(text.pooled_width), "its width")
    if vision is not None:
        grid = "a grid for each bucket" if vision.grid is None else "{} x {} patches".format(*vision.grid)
        yield Row("Stored", f"{vision.tokens}, {vision.dtype}, {grid}, {vision.width} wide", f"input {vision.input}")


def _settings(metadata: Metadata) -> Iterator[Row]:
    for name, value in metadata.fingerprint.items():
        if (
            value is not None
            and not name.endswith(("_weights", "_config"))
            and name not in ("bucket_table", "tokenizer")
        ):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield Row(f"Setting {name.replace('_', ' ')}", printable(shown))


def _software(metadata: Metadata) -> Iterator[Row]:
    yield Row("Made with", ", ".join(f"{name} {version}" for name, version in metadata.software.items()))

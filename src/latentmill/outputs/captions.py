"""Text features as an output, in the layout that PixArt reads: trimmed to the real tokens, or padded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from latentmill.batching import ByTokens
from latentmill.config import CaptionSettings
from latentmill.destination import stored_fingerprint, to_clear
from latentmill.errors import ConfigError, ModelError, SampleError, SettingsChangedError, SourceError
from latentmill.estimate import announce_output
from latentmill.files import counted, printable
from latentmill.finish import Description
from latentmill.formats.containers import FolderContainer
from latentmill.formats.metadata import TextInfo
from latentmill.formats.pixart import EMPTY_CAPTION, PixArtText, ReaderKind, check_names, feature_name
from latentmill.job import Job
from latentmill.loading import CaptionLoad
from latentmill.outcome import Event, Tell
from latentmill.outputs.common import feature_folder, series, stored_reader, wanted_refs
from latentmill.outputs.processes import encoder_devices, encoder_threads, told
from latentmill.outputs.shared import Shared
from latentmill.passes import Prepared
from latentmill.records import Listing, Sample, SampleRef
from latentmill.registry import TEXT_MODELS, TEXT_SETS
from latentmill.sources.features import Captions
from latentmill.worker import Output

if TYPE_CHECKING:
    from latentmill.encoders.text import TextEncoderSpec, TextSpec

_NPZ_OVERHEAD, _ROW_BYTES = 500, 450
_REPEATED = 0.01  # of a vector that is repeated, when it is deflated
_PROBE_CAPTIONS = 8
_LONG_PROBE = 0.25  # seconds
_CAPTIONS_AHEAD = 64


def prepare_captions(chosen: CaptionSettings, shared: Shared, tell: Tell) -> list[Prepared]:
    """Everything that can be refused is, and what will be done is told, before the work. Raises LatentmillError."""
    whole = FolderContainer(chosen.dest)
    made_with = {} if to_clear(chosen.overwrite, whole) else stored_fingerprint(whole)
    found = shared.captioned(chosen, of_images=False)
    place = feature_folder(chosen.dest, found)
    keys = [row.key for row in found.rows]
    reader = _reader(chosen, stored_reader(made_with), keys, place.path)
    check_names(keys, reader, ".npz")
    threads = encoder_threads(chosen, made_with)
    asked = (chosen.model, chosen.member, chosen.repository, chosen.revision, chosen.max_length, repr(chosen.encoding))
    key = ("text", *asked, chosen.device, chosen.dtype, threads)
    spec = shared.one(shared.once(key, lambda: _encoder(chosen, threads)))
    devices = encoder_devices(chosen, spec, threads)
    captions = Captions(found, chosen.label, chosen.missing_caption, spec.lengths, chosen.start_index, chosen.rows_end)
    listing = shared.trusted(chosen) or captions.listing()
    if not listing.trusted:
        tell_missing(listing, chosen, tell)
    layout = PixArtText(reader, spec.max_length if chosen.pad else None, spec.pooled_width, spec.has_features)
    device = f"{told(threads, spec.device, devices)}, {chosen.dtype}"
    tell(Event("plan", f"{spec.model.info.name}: {spec.width} wide, at most {spec.max_length} tokens; {device}"))
    what, total = text_bytes(chosen, spec, listing)
    if not listing.trusted:
        announce_output(what, total, place.path, tell)
    job = Job(
        source=captions,
        load=CaptionLoad(spec),
        encoder=spec,
        outputs=(Output("text", layout, place, encoded=True),),
        describe={"text": _description(chosen, spec, layout)},
        batching=ByTokens(chosen.token_budget, spec.overhead),
        batch_size=_CAPTIONS_AHEAD,
        load_threads=1,
        workers=len(devices),
        devices=devices,
        max_failures=chosen.max_failures,
        measure=lambda encoder, refs: _seconds_a_token(spec, refs),
        check=chosen.check,
        overwrite=chosen.overwrite,
        trust=chosen.trust_source,
        patient=chosen.wait,
        tell=tell,
    )
    return [Prepared(job, listing, total)]


def _encoder(chosen: CaptionSettings, threads: int) -> TextSpec:
    from latentmill.encoders.text import text_spec

    name = chosen.model if chosen.member is None else chosen.member
    if chosen.repository is not None and name not in TEXT_MODELS:
        close = get_close_matches(name, [*TEXT_MODELS, *TEXT_SETS], 1)
        raise ConfigError(
            f"model must be a short name where a repository is given, which stands for how that is used: see "
            f"`latentmill models`.{f' Did you mean {close[0]}?' if close else ''} Found: {name!r}"
        )
    return text_spec(
        name,
        source=chosen.repository,
        revision=chosen.revision,
        max_length=chosen.max_length,
        settings=chosen.encoding,
        device=chosen.device,
        dtype=chosen.dtype,
        threads=threads,
    )


def _reader(chosen: CaptionSettings, begun: ReaderKind | None, keys: Sequence[str], folder: Path) -> ReaderKind:
    """Whose file names: as asked, as the VAE features of the same call, or as the folder was begun."""
    wanted = chosen.reader or chosen.images_reader or begun or "multi"
    if chosen.reader is not None or begun is None or begun == wanted:
        return wanted
    other = next((key for key in keys if feature_name(key, begun, ".npz") != feature_name(key, wanted, ".npz")), None)
    if other is None:
        return begun
    name = printable(feature_name(other, begun, ".npz"))
    raise SettingsChangedError(
        f"{folder} was begun with names for the {begun}-scale reader ({name}), and the VAE features of this call are "
        f"for the {wanted}-scale one. Give the text features a folder of their own (a suffix), or --overwrite them"
    )


def _description(chosen: CaptionSettings, spec: TextSpec, layout: PixArtText) -> Description:
    info = spec.model.info
    return Description(
        {
            "reader": layout.reader,
            "device": spec.device.partition(":")[0],
            "dtype": chosen.dtype,
            "threads": spec.threads,
            "label": chosen.label,
            "max_length": spec.max_length,
            "pad": chosen.pad,
            "token_budget": chosen.token_budget,
            "text_weights": info.weights_sha256,
            "text_config": info.config_sha256,
            "tokenizer": info.tokenizer_sha256,
            "torch": series("torch"),
            "transformers": series("transformers"),
            **{f"encoding_{name}": value for name, value in spec.described().items()},
            **({"encoder": chosen.encoder} if chosen.encoder else {}),
        },
        text=TextInfo(
            label=chosen.label,
            max_length=spec.max_length,
            padded=chosen.pad,
            dtype="float16",
            width=spec.width,
            compute_dtype=chosen.dtype,
            empty=EMPTY_CAPTION,
            pooled_width=spec.pooled_width,
            settings=spec.described(),
            encoder=chosen.encoder,
        ),
        text_model=info,
        empty_caption=lambda: _empty_caption(spec, layout),
    )


def tell_missing(listing: Listing, chosen: CaptionSettings, tell: Tell) -> None:
    """Captions that are missing are known now: say so, and refuse now what `max_failures` would stop midway."""
    wanted = [ref for ref in listing.refs() if listing.wanted(ref)]
    faults = [ref.fault for ref in wanted if ref.fault]
    if not faults:
        return
    found = f"{len(faults):,} of {len(wanted):,} rows have no caption that can be used (the first: {faults[0]})"
    ways = "--missing-caption empty takes the empty caption where there is none; "
    ways *= chosen.missing_caption == "reject"
    if chosen.max_failures.exceeded(len(faults), len(wanted)):
        raise SourceError(
            f"{found}, over --max-failures {chosen.max_failures}. {ways}a higher limit records them as rejects"
        )
    tell(Event("warning", f"{found}: they will be rejects. {ways}".rstrip("; ")))


def text_bytes(chosen: CaptionSettings, spec: TextEncoderSpec, listing: Listing) -> tuple[str, int]:
    """What will be stored, for a person, and in how many bytes, about."""
    refs = wanted_refs(listing)
    tokens = sum(ref.tokens for ref in refs)
    padding = (len(refs) * spec.max_length - tokens) * _REPEATED if chosen.pad else 0.0
    numbers = int(tokens + padding) * spec.width * spec.has_features + len(refs) * (spec.pooled_width or 0)
    distinct = len({ref.caption for ref in refs})
    what = f"{counted(len(refs), 'captions')} ({distinct:,} distinct) of {tokens / max(len(refs), 1):.1f} tokens"
    return what, numbers * 2 + len(refs) * (_NPZ_OVERHEAD + _ROW_BYTES)


def _empty_caption(spec: TextEncoderSpec, layout: PixArtText) -> bytes:
    """The file of the empty caption alone. Raises ModelError."""
    sample = Sample(SampleRef(0, "", ""), spec.tokenize([""])[0].ids, "")
    result = spec.open().encode([sample])[0]
    if isinstance(result, SampleError):
        raise ModelError(f"the empty caption cannot be encoded: {result.reason}")
    return layout.to_bytes(result.array, result.beside)


def _seconds_a_token(spec: TextEncoderSpec, refs: Sequence[SampleRef]) -> float:
    """Seconds that one token takes in a small batch: an upper bound, since batches of a whole budget are faster."""
    texts = [ref.caption for ref in refs if ref.caption is not None][:_PROBE_CAPTIONS]
    samples = [Sample(SampleRef(0, "", ""), tokens.ids, "") for tokens in spec.tokenize(texts)]
    if not samples:
        return 0.01
    encoder = spec.open()
    seconds = 0.0
    for probe in (samples[:1], samples[1:]):  # the first may only warm up; a slow one tells enough
        if not probe or seconds > _LONG_PROBE:
            break
        start = time.perf_counter()
        encoder.encode(probe)
        seconds = time.perf_counter() - start
        found = seconds / sum(len(sample.array) for sample in probe)
    return found

"""What a report tells of a dataset, collected once and drawn elsewhere: figures, sampled arrays, encoded pictures.

Whatever could not be found is None or empty, and `notes` of its part says why, for the person who reads the report.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from latentmill.records import Array


@dataclass(frozen=True)
class Picture:
    """An encoded picture. media_type: image/jpeg or image/png. alt: what it shows, in words."""

    data: bytes
    media_type: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class Quality:
    """How near a reconstruction is to what was encoded, on 8-bit RGB. psnr: dB, inf where equal. ssim: at most 1."""

    psnr: float
    ssim: float


@dataclass(frozen=True)
class Caption:
    """One caption of an image. label: which of its captions. tokens: of the whole text, with those that the tokenizer
    adds; None where no tokenizer was at hand. kept, cut: the text that the encoder got, and what truncation cut off.
    """

    label: str
    kept: str
    cut: str = ""
    tokens: int | None = None


@dataclass(frozen=True)
class Shown:
    """One sample as a person looks at it. size, bucket: (height, width) of the source and of what the model is fed.

    original: the whole source image with the cut-away part shaded; None where it is not at hand. model_input: the
    pixels that the model is fed. reconstruction: of the stored latent. cut_away: the share of the original's pixels.
    stretched: how much longer one side became against the other, 0.0 not at all.
    """

    name: str
    key: str
    label: str
    size: tuple[int, int] | None
    bucket: tuple[int, int] | None
    original: Picture | None
    model_input: Picture | None
    reconstruction: Picture | None
    quality: Quality | None
    cut_away: float | None
    captions: tuple[Caption, ...] = ()
    stretched: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of what the dataset is: a name, its value, and what to know of it. Both in words for a person."""

    name: str
    value: str
    hint: str = ""


@dataclass(frozen=True)
class Reject:
    """One image that was rejected. picture: a thumbnail, where anything of it could be decoded."""

    key: str
    stage: str
    reason: str
    picture: Picture | None = None


@dataclass(frozen=True)
class Soundness:
    """verify's verdict. checked: how much it read: `everything`, or in words; "" where nothing was.

    by_reason: rejects, commonest first; some: a few of them with pictures. notes: counts, as of EXIF-rotated images.
    """

    problems: tuple[str, ...]
    checked: str
    listed: int
    stored: int
    rejected: int
    skipped: int
    by_reason: tuple[tuple[str, int], ...] = ()
    some: tuple[Reject, ...] = ()
    notes: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Histogram:
    """Counts between edges: one more edge than counts. below, above: what lies beyond the first and last edge."""

    edges: Array
    counts: Array
    below: int = 0
    above: int = 0


@dataclass(frozen=True)
class ChannelFacts:
    """Stored latents of one channel, before any normalisation (the posterior's mean where moments are stored).

    From sampled files: histogram. mean, std: over the whole dataset where it records them, else of the sample.
    recorded_scale, recorded_shift: what the metadata has for this channel, as (z - shift) * scale. suggested_*: what
    would bring this dataset to mean 0 and deviation 1.
    """

    channel: int
    histogram: Histogram
    mean: float
    std: float
    recorded_scale: float | None
    recorded_shift: float | None
    suggested_scale: float
    suggested_shift: float


@dataclass(frozen=True)
class LatentFacts:
    """overall_*: one scale and shift for all channels, as `scaling_factor` and `shift_factor` are. Files: sampled."""

    channels: tuple[ChannelFacts, ...]
    recorded_scale: float | None
    recorded_shift: float | None
    overall_scale: float
    overall_shift: float
    files: int
    whole_dataset: bool


@dataclass(frozen=True)
class BucketFacts:
    """One bucket, (height, width). lost: mean share of pixels cropped away; stretched: mean distortion, 0.0 not."""

    size: tuple[int, int]
    images: int
    lost: float | None
    stretched: float | None
    upscaled: int | None
    shown: tuple[Shown, ...] = ()


@dataclass(frozen=True)
class SizeFacts:
    """Sizes of source images, sampled: heights, widths (N,). of: how many images they stand for."""

    heights: Array
    widths: Array
    of: int


@dataclass(frozen=True)
class CaptionFacts:
    """Token lengths of one of the captions (N,), before truncation. max_length: of the encoder. encoder: its name."""

    label: str
    encoder: str
    lengths: Array
    max_length: int
    truncated: int
    of: int


@dataclass(frozen=True)
class ClassFacts:
    """Images of each class, in order of the labels. names: of the classes, or their numbers as text."""

    names: tuple[str, ...]
    counts: Array


@dataclass(frozen=True)
class SpeedFacts:
    """stages: seconds summed over workers, by stage, in the order of the data flow. timeline: (N, 2), seconds since the
    first batch and images committed by then; of the last run alone. bottleneck: in a sentence, what limited it.
    """

    seconds: float
    images: int
    workers: int
    stages: tuple[tuple[str, float], ...]
    timeline: Array
    bottleneck: str


@dataclass(frozen=True)
class DatasetFacts:
    """One dataset of a result. kind: images, latents, text or vision. notes: what is missing here, and why."""

    path: Path
    name: str
    kind: str
    summary: str
    identity: tuple[Row, ...]
    soundness: Soundness
    shown: tuple[Shown, ...] = ()
    best: tuple[Shown, ...] = ()
    worst: tuple[Shown, ...] = ()
    qualities: tuple[Quality, ...] = ()
    sizes: SizeFacts | None = None
    buckets: tuple[BucketFacts, ...] = ()
    bucket_table: tuple[tuple[int, int], ...] = ()
    latents: LatentFacts | None = None
    captions: tuple[CaptionFacts, ...] = ()
    classes: ClassFacts | None = None
    speed: SpeedFacts | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportFacts:
    """Everything that a report tells. sampled: in a sentence, what was sampled and how, or "" where nothing was.

    seconds: that collecting took. software: versions, by name. left_out: datasets that are damaged or not finished, and
    why.
    """

    root: Path
    datasets: tuple[DatasetFacts, ...]
    sampled: str
    seconds: float
    software: dict[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

"""What lies beside the data: `latentmill.json` (everything a trainer needs to use it), the index, the labels.

None of these names ends in an extension that trainers take for an image or an array. Paths that are not UTF-8 are
held with surrogate escapes and written as JSON's own `\\udcXX`, so they come back as they were.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from latentmill.errors import SourceError
from latentmill.files import DIGEST, digest
from latentmill.formats.rows import reject_mark
from latentmill.formats.rows import row_geometry as row_geometry
from latentmill.formats.rows import row_json as row_json
from latentmill.formats.rows import row_outcome as row_outcome
from latentmill.formats.zip_tail import open_last_member

DATASET_JSON = "dataset.json"
METADATA_JSON = "latentmill.json"
INDEX_JSONL = "latentmill-index.jsonl"
INDEX_COLUMNS = "latentmill-index.bin"  # the same, for loaders; see `formats.columns`
REJECTS_JSONL = "latentmill-rejects.jsonl"
REPORT_JSON = "latentmill-report.json"
RECIPE_TOML = "latentmill-recipe.toml"
WORK_FOLDER = ".latentmill"  # in a dataset that is being made; beside a zip, NAME.zip.latentmill

_LABELS = 1 << 63  # trainers hold them as int64
_MAX_BESIDE_BYTES = 1 << 30  # labels of ten million images; a small zip may claim more
READ_ERRORS = (OSError, EOFError, zipfile.BadZipFile, zlib.error)  # of a member of a folder or a zip
Value = str | int | float | bool | None | list[float]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Normalization(_Record):
    """How latents become what a model is trained on; one form for all families.

    Channels of `patch` x `patch` positions first become channels (1: they do not). Then, as diffusers' pipelines
    have it: `scale-shift`: (z - shift_factor) * scaling_factor, without shift_factor z * scaling_factor. `per-channel`
    (Wan, Qwen-Image) and `batch-norm` (FLUX.2, patch 2): (z - mean[c]) / std[c]; mean and std have a number for each
    channel after patching.
    """

    kind: Literal["scale-shift", "per-channel", "batch-norm"]
    scaling_factor: float | None = None
    shift_factor: float | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    patch: int = 1


class ModelInfo(_Record):
    """The VAE. `scaling_factor` and `shift_factor` as diffusers' config has them; see `normalization` for their use.

    config_sha256: of config.json without the keys that begin with an underscore. is_local: `name` is a folder.
    normalization: None in datasets of the first version, whose models all have scale and shift. posterior: whether the
    model gives a distribution, so that moments can be stored.
    """

    name: str
    revision: str | None = None
    subfolder: str | None = None
    class_name: str
    weights_sha256: str
    config_sha256: str
    is_local: bool = False
    latent_channels: int
    downscale_factor: int
    scaling_factor: float | None = None
    shift_factor: float | None = None
    normalization: Normalization | None = None
    posterior: bool = True

    @property
    def pixel_multiple(self) -> int:
        """What both sides of an image must be multiples of, in pixels: the factor, and that of patching too."""
        return self.downscale_factor * (self.normalization.patch if self.normalization else 1)


class TextModelInfo(_Record):
    """The text encoder. tokenizer_sha256: over its files. width: D of a vector. is_local: `name` is a folder.

    subfolder: of the encoder in a pipeline's folder, where it is not `text_encoder`.
    """

    name: str
    revision: str | None = None
    class_name: str
    weights_sha256: str
    config_sha256: str
    tokenizer_sha256: str
    is_local: bool = False
    width: int
    subfolder: str | None = None


class VisionModelInfo(_Record):
    """The vision encoder. width: D of a token. patch_size: pixels of a patch's side. is_local: `name` is a folder.

    processor_sha256: of preprocessor_config.json without the keys that begin with an underscore.
    """

    name: str
    revision: str | None = None
    subfolder: str | None = None
    class_name: str
    weights_sha256: str
    config_sha256: str
    processor_sha256: str
    is_local: bool = False
    width: int
    patch_size: int


class VisionInfo(_Record):
    """The stored vision features: `patch` (N, D), row by row of the grid of patches; `pooled` (1, D); `both`
    (1 + N, D), the pooled vector first.

    grid: (height, width) in patches; null where every bucket has its own. input: how pixels were brought to the model,
    see `encoders.vision`. input_size: (height, width) of the model's input, null where every bucket has its own.
    """

    tokens: Literal["patch", "pooled", "both"]
    input: str
    input_size: tuple[int, int] | None
    grid: tuple[int, int] | None
    width: int
    dtype: str
    compute_dtype: str


class LatentInfo(_Record):
    """The stored arrays: `shape` and `dtype` of a file. `scaled` is False: latents are stored as the VAE gave them.

    shape: (channels, height, width); height and width are null where every bucket has its own. padded_from: (height,
    width) in pixels before padding on the right and at the bottom; null where nothing was padded.
    """

    shape: list[int | None]
    dtype: str
    statistic: Literal["moments", "mean", "sample"]
    scaled: bool = False
    pixel_range: tuple[float, float]
    compute_dtype: str
    padded_from: tuple[int, int] | None = None

    @property
    def fixed_shape(self) -> tuple[int, int, int]:
        """(channels, height, width), where all files have the same. Raises SourceError."""
        channels, height, width = self.shape
        if channels is None or height is None or width is None:
            raise SourceError("these latents have a shape of their own in every bucket")
        return channels, height, width


class BucketInfo(_Record):
    """How images became pixels: `table` is a line of ratio=HEIGHTxWIDTH, `fit` and `resample` see `transforms.fit`."""

    table: str
    fit: Literal["stretch", "cover", "pad"]
    resample: str


class TextInfo(_Record):
    """The stored text features, (1, L, width): L is max_length where they are padded, else each caption's real tokens.

    label: which of the captions. encoder: the encoder's name in a set of several; "" where it is the only one.
    empty: the file with the features of the empty caption, and its digest. width: of the array; where the pooled
    vector is all that is stored, its own, and L is 1.
    """

    label: str
    encoder: str = ""
    max_length: int
    padded: bool
    dtype: str
    width: int
    compute_dtype: str
    empty: str
    empty_digest: str = ""
    pooled_width: int | None = None  # of `pooled` beside the features; None where there is none
    settings: dict[str, Value] = {}  # of the encoder: hidden layer, prefix or template; see `encoders.text`


class Statistics(_Record):
    """Per channel, over every stored latent and position (each image counts the same, whatever its size).

    mean, std: of what is stored (of `moments`: of the posterior's mean). std_sampled: of samples drawn from the
    posterior, sqrt(std² + mean of the posterior's variance); equal to `std` where no posterior is stored.
    """

    mean: list[float]
    std: list[float]
    std_sampled: list[float]


class Counts(_Record):
    """Images listed in the source; stored, rejected (see the rejects file) and skipped by the transform's rule."""

    listed: int
    stored: int
    rejected: int
    skipped: int


class Metadata(_Record):
    """`latentmill.json`. No time and no path in it (but the model's, as given): the same work, the same bytes."""

    format: Literal["latentmill/1"] = "latentmill/1"
    kind: Literal["images", "latents", "text", "vision"]
    layout: str = ""  # code of the layout; "" in what the first version made
    counts: Counts
    image_size: tuple[int, int] | None = None
    buckets: BucketInfo | None = None
    latent: LatentInfo | None = None
    model: ModelInfo | None = None
    text: TextInfo | None = None
    text_model: TextModelInfo | None = None
    vision: VisionInfo | None = None
    vision_model: VisionModelInfo | None = None
    statistics: Statistics | None = None
    classes: list[str] | None = None
    notes: dict[str, int] = {}
    digest: str = DIGEST
    source_digest: str
    index_digest: str
    fingerprint: dict[str, Value]
    software: dict[str, str]
    own_digest: str = ""  # of this file as it would be with "" here

    @classmethod
    def read_beside(cls, path: Path) -> Metadata | None:
        """The metadata in a folder or a zip; None where there is none. Raises SourceError when it is damaged."""
        data = read_beside(path, METADATA_JSON)
        if data is None:
            return None
        try:
            return cls.model_validate(json.loads(data))  # pydantic's own reader refuses surrogates
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the whole file"
            raise SourceError(f"{METADATA_JSON} in {path} is damaged at {where}: {first['msg']}") from error
        except ValueError as error:
            raise SourceError(f"{METADATA_JSON} in {path} is not JSON: {error}") from error

    def to_json(self) -> str:
        return _sealed(self.model_dump(mode="json"))


def _sealed(table: dict[str, Any]) -> str:
    seal = digest(json.dumps({**table, "own_digest": ""}, indent=1).encode())
    return json.dumps({**table, "own_digest": seal}, indent=1) + "\n"


def is_as_written(text: bytes) -> bool:
    """Whether a `latentmill.json` is, byte for byte, as it was written."""
    return text == _sealed(json.loads(text)).encode()


def read_beside(path: Path, name: str) -> bytes | None:
    """A whole metadata file of a folder or a zip; None where it is not there. Raises SourceError when damaged."""
    try:
        stream = open_beside(path, name)
        if stream is None:
            return None
        with stream:
            data = stream.read(_MAX_BESIDE_BYTES + 1)
        if len(data) > _MAX_BESIDE_BYTES:
            raise SourceError(f"{name} in {path} is over {_MAX_BESIDE_BYTES:,} bytes, which is not believed")
        return data
    except READ_ERRORS as error:
        raise SourceError(f"{name} in {path} cannot be read: {str(error) or type(error).__name__}") from error


def open_beside(path: Path, name: str) -> IO[bytes] | None:
    """A metadata file of a folder or a zip, to read; None where it is not there. Raises SourceError when damaged."""
    if path.is_dir():
        file = path / name
        return file.open("rb") if file.is_file() else None
    try:
        found = open_last_member(path, name)
        if found is not None:
            return found
        with zipfile.ZipFile(path) as archive:
            return archive.open(name)
    except (KeyError, FileNotFoundError, NotADirectoryError):
        return None
    except (*READ_ERRORS, RuntimeError, NotImplementedError) as error:
        raise SourceError(f"{name} in {path} cannot be read: {str(error) or type(error).__name__}") from error


def index_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a finished dataset's index, in order, one at a time. Raises SourceError when it is damaged."""
    stream = open_beside(path, INDEX_JSONL)
    if stream is None:
        return
    try:
        with io.TextIOWrapper(stream, "utf-8") as lines:
            for line in lines:
                yield json.loads(line)
    except (*READ_ERRORS, ValueError) as error:
        raise SourceError(f"{INDEX_JSONL} in {path} is damaged: {str(error) or type(error).__name__}") from error


def rejected_at(path: Path, stages: tuple[str, ...]) -> bool:
    """Whether a finished dataset's index holds a reject of one of these stages. Raises SourceError when it is damaged.

    Lines are not parsed, which takes a tenth of the time: no key holds what is looked for, since JSON escapes quotes.
    """
    marks = [reject_mark(stage).encode() for stage in stages]
    stream = open_beside(path, INDEX_JSONL)
    if stream is None:
        return False
    try:
        with stream:
            return any(mark in line for line in stream for mark in marks)
    except READ_ERRORS as error:
        raise SourceError(f"{INDEX_JSONL} in {path} is damaged: {str(error) or type(error).__name__}") from error


def read_labels(text: bytes, where: str) -> dict[str, int]:
    """Labels by name of a `dataset.json`; empty where they are null or empty. Raises SourceError when malformed."""
    try:
        table = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"{where} is not JSON: {error}") from error
    labels = table.get("labels", table) if isinstance(table, dict) else table
    if isinstance(table, dict) and labels in (None, [], {}):
        return {}
    if not isinstance(table, dict) or not isinstance(labels, list):
        raise SourceError(
            f'{where} must be {{"labels": [[name, integer], ...]}} or {{"labels": null}}. Found: '
            f"{json.dumps(table)[:80]}"
        )
    given = {}
    for row in labels:
        if not (type(row) is list and len(row) == 2 and type(row[0]) is str and type(row[1]) is int):
            raise SourceError(f"every label in {where} must be [name, integer]. Found: {json.dumps(row)[:80]}")
        if not -_LABELS <= row[1] < _LABELS:
            raise SourceError(f"labels must fit in 64 bits with a sign. Found in {where}: {json.dumps(row)[:80]}")
        given[row[0].replace("\\", "/")] = row[1]
    return given

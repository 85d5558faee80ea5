"""A batch to files: each image's in every output, or in none, so that pairs stay pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

from latentmill.errors import SampleError
from latentmill.files import digests
from latentmill.formats.containers import ShardSink
from latentmill.records import Encoded, Outcome, Sample, StoredFile
from latentmill.stages import Layout

_TOGETHER = 2  # images whose files' digests are told side by side; more would take as long
_SMALL_BYTES = 1 << 20  # of an image whose files may wait for another's

Item = TypeVar("Item")


class Storage(Protocol):
    """The part of an output that storing needs. encoded: it stores what the encoder gives, and not pixels."""

    @property
    def name(self) -> str: ...
    @property
    def layout(self) -> Layout: ...
    @property
    def encoded(self) -> bool: ...


class _Ready(NamedTuple):
    """An image, and what the encoder gave for it, if there is one."""

    sample: Sample
    encoding: Encoded | None

    def given(self, output: Storage) -> Encoded:
        """What an output stores."""
        return self.encoding if output.encoded and self.encoding is not None else Encoded(self.sample.array)

    def packed(self, output: Storage) -> tuple[str, bytes]:
        """Name and bytes of its file in an output."""
        given, ref = self.given(output), self.sample.ref
        return output.layout.name(ref.index, ref.key), output.layout.to_bytes(given.array, given.beside)

    def outcome(self, files: dict[str, StoredFile]) -> Outcome:
        """Once its files are written."""
        sample, (notes, sums) = self.sample, (self.encoding.notes, self.encoding.sums) if self.encoding else ((), ())
        return Outcome(sample.ref, sample.digest, sample.notes + notes, files, sums, geometry=sample.geometry)


def together(items: Iterable[Item], bytes_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Items in groups, in order: the files of a group are made before they are written, and their digests told at once.

    bytes_of: of an item's files, about; 0 of what has none. Who has many is alone, so that one file at a time is held.
    """
    group: list[Item] = []
    with_files = 0
    for item in items:
        size = bytes_of(item)
        if size > _SMALL_BYTES and group:
            yield group
            group, with_files = [], 0
        group.append(item)
        with_files += size > 0
        if size > _SMALL_BYTES or with_files == _TOGETHER:
            yield group
            group, with_files = [], 0
    if group:
        yield group


def stored(
    outputs: Sequence[Storage],
    sinks: Mapping[str, ShardSink],
    items: Iterable[Sample | Outcome],
    results: Mapping[int, Encoded | SampleError],
    one_by_one: bool = False,
) -> Iterator[Outcome]:
    """Write a batch's images to every output, or to none where its encoding failed; gives what becomes of each.

    results: of the encoder, by index. one_by_one: an image is asked for once the one before it is written.
    """

    def bytes_of(item: _Ready | Outcome) -> int:
        return 0 if isinstance(item, Outcome) else sum(item.given(output).array.nbytes for output in outputs)

    ready = (_ready(item, results) for item in items)
    for group in ([item] for item in ready) if one_by_one else together(ready, bytes_of):
        if len(group) == 1:
            yield _store(outputs, sinks, group[0])
        else:
            yield from _store_together(outputs, sinks, group)


def _ready(item: Sample | Outcome, results: Mapping[int, Encoded | SampleError]) -> _Ready | Outcome:
    """An Outcome where nothing is left to be written."""
    if isinstance(item, Outcome):
        return item
    result = results.get(item.ref.index)
    if isinstance(result, SampleError):
        return Outcome(item.ref, item.digest, item.notes, stage=result.stage, reason=result.reason)
    return _Ready(item, result)


def _store(outputs: Sequence[Storage], sinks: Mapping[str, ShardSink], item: _Ready | Outcome) -> Outcome:
    """Its files are made and written one after the other."""
    if isinstance(item, Outcome):
        return item
    return item.outcome({output.name: sinks[output.name].write(*item.packed(output)) for output in outputs})


def _store_together(
    outputs: Sequence[Storage], sinks: Mapping[str, ShardSink], group: Sequence[_Ready | Outcome]
) -> Iterator[Outcome]:
    """All files are made before the first is written."""
    made = [[] if isinstance(item, Outcome) else [item.packed(output) for output in outputs] for item in group]
    told = iter(digests(data for files in made for _, data in files))
    for item, files in zip(group, made, strict=True):
        if isinstance(item, Outcome):
            yield item
            continue
        written = zip(outputs, files, strict=True)
        yield item.outcome({output.name: sinks[output.name].write(*file, next(told)) for output, file in written})

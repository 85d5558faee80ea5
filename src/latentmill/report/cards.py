"""Samples as cards of a report's galleries: the worst and the best, the others, bucket by bucket."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from latentmill.report.facts import BucketFacts, DatasetFacts, Picture, Quality, Reject, Shown
from latentmill.report.shell import Card, Group, View
from latentmill.wording import counted, printable

_SEEN = 6  # of a bucket
_SEEN_CUT = 0.0005  # of the pixels: less is rounding too
_SEEN_STRETCH = 0.005  # of a side: less is rounding to whole pixels


def groups(facts: DatasetFacts) -> list[Group]:
    """Worst reconstructions, best ones, and the others; each sample once."""
    known = {shown.key: shown for shown in (*facts.shown, *facts.best, *facts.worst)}
    worst = [known.pop(shown.key) for shown in facts.worst if shown.key in known]
    best = [known.pop(shown.key) for shown in facts.best if shown.key in known]
    others = list(known.values())
    heading = "Other samples" if worst or best else ""
    parts = [
        Group("Worst reconstructions", _ranked(worst, "worst"), _of(facts, "lowest") if worst else ""),
        Group("Best reconstructions", _ranked(best, "best"), _of(facts, "highest") if best else ""),
        Group(heading, tuple(card(shown) for shown in others)),
    ]
    return [part for part in parts if part.cards]


def card(shown: Shown, badge: str = "") -> Card:
    """A sample with all that is known of it."""
    return Card(
        title=printable(shown.key),
        views=tuple(_views(shown)),
        detail=_detail(shown),
        badge=badge,
        captions=shown.captions,
        sort=_numbers(shown),
        groups=_filters(shown),
    )


def tiles(facts: BucketFacts) -> tuple[Card, ...]:
    """What the model is fed of one bucket's samples, small."""
    pairs = ((shown, shown.model_input or shown.original) for shown in facts.shown[:_SEEN])
    return tuple(Card(printable(shown.key), (View("Model input", fed),)) for shown, fed in pairs if fed)


def rejects(some: Iterable[Reject]) -> tuple[Card, ...]:
    return tuple(
        Card(
            printable(reject.key),
            (View("Rejected", reject.picture),) if reject.picture else (),
            detail=f"{reject.stage}: {printable(reject.reason)}",
        )
        for reject in some
    )


def nothing_new(groups: Iterable[Group], others: Iterable[Group]) -> bool:
    """Whether all pictures and captions of the first are among those of the second."""
    return _content(groups) <= _content(others)


def _content(groups: Iterable[Group]) -> set[object]:
    cards = [card for group in groups for card in group.cards]
    return {view.picture.data for card in cards for view in card.views} | {
        caption for card in cards for caption in card.captions
    }


def pictures(facts: DatasetFacts) -> Iterator[Picture]:
    """Every picture that `groups`, `tiles` and `rejects` show, as often as they do."""
    cards = [card for group in groups(facts) for card in group.cards]
    for bucket in facts.buckets:
        cards.extend(tiles(bucket))
    cards.extend(rejects(facts.soundness.some))
    return (view.picture for card in cards for view in card.views)


def size(pair: tuple[int, int]) -> str:
    """(height, width) as people name it: width first."""
    return f"{pair[1]} × {pair[0]}"


def decibels(psnr: float) -> str:
    if math.isnan(psnr):
        return "not known"
    return "no difference" if psnr == math.inf else f"{psnr:.1f} dB"


def _ranked(shown: list[Shown], word: str) -> tuple[Card, ...]:
    return tuple(card(one, word if place == 0 else f"{word} {place + 1}") for place, one in enumerate(shown))


def _of(facts: DatasetFacts, word: str) -> str:
    """What they are the best or worst of."""
    return f"The {word} PSNR of {counted(len(facts.qualities), 'images')} that were reconstructed." * bool(
        facts.qualities
    )


def _views(shown: Shown) -> Iterator[View]:
    if shown.original:
        yield View("Original", shown.original, _cut(shown.cut_away))
    if shown.model_input:
        told = [size(shown.bucket)] if shown.bucket else []
        if shown.stretched and shown.stretched >= _SEEN_STRETCH:
            told.append(f"stretched {shown.stretched:.0%}")
        yield View("Model input", shown.model_input, "\n".join(told), base=True)
    if shown.reconstruction:
        note = _quality(shown.quality) if shown.quality else ""
        yield View("Reconstruction", shown.reconstruction, note, compare=shown.model_input is not None)


def _cut(share: float | None) -> str:
    """Never 0 % of something, nor 100 % of what is not all."""
    if share is None:
        return ""
    if share < _SEEN_CUT:
        return "nothing cut"
    told = "under 1%" if share < 0.01 else "over 99%" if share > 0.99 else f"{share:.0%}"
    return f"{told} cut away"


def _quality(quality: Quality) -> str:
    return f"PSNR {decibels(quality.psnr)}\nSSIM {'not known' if math.isnan(quality.ssim) else f'{quality.ssim:.3f}'}"


def _detail(shown: Shown) -> str:
    parts = [
        size(shown.size) if shown.size else "",
        f"class {printable(shown.label)}" if shown.label else "",
        printable(shown.name) if shown.name != shown.key else "",
    ]
    return " · ".join(part for part in parts if part)


def _numbers(shown: Shown) -> dict[str, float]:
    return {"PSNR": shown.quality.psnr, "SSIM": shown.quality.ssim} if shown.quality else {}


def _filters(shown: Shown) -> dict[str, str]:
    found = {"Size": size(shown.bucket) if shown.bucket else "", "Class": printable(shown.label)}
    return {name: value for name, value in found.items() if value}

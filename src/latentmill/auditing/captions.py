"""What is wrong with captions: missing, shared by many, too long, decoded wrongly, with remains of web pages."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from latentmill.auditing import kinds
from latentmill.auditing.findings import Finding
from latentmill.errors import SampleError
from latentmill.sources.caption_rows import PROMPT, CaptionedImage, Missing, caption_of

LONG_CHARACTERS = 1200  # without a tokenizer: about the 300 tokens of PixArt-Sigma's T5
_MARKUP = re.compile(
    r"</?[a-z][a-z0-9]*(?:\s[^<>]*)?/?>|<!--|&(?:[a-z]{2,8}|#\d{2,6}|#x[0-9a-f]{2,5});|https?://|\bwww\.\w",
    re.IGNORECASE,
)
_PHRASE_WORDS = (8, 6, 4, 3)  # longer phrases first: a shorter one within is not told again
_SHARED_BY, _SHARED_PART = 5, 0.1  # a phrase is told where it begins or ends so many captions, and this part of all
_SHOWN_PHRASES = 20
_SHOWN = 80  # characters

Named = tuple[str, str, str]  # key, name of the caption, its text


def caption_findings(
    rows: Iterable[CaptionedImage],
    names: Sequence[str],
    missing: Missing,
    lengths: Mapping[str, int] | None,
    limit: int,
) -> Iterator[Finding]:
    """What is found in the captions of rows, under every name that they have.

    lengths: tokens by caption, of those that are over `limit`; None: characters are counted.
    """
    texts: list[Named] = []
    for row in rows:
        found, why = _usable(row, names, missing)
        texts += [(row.key, name, text) for name, text in found.items() if text]
        if why:
            yield Finding(kinds.NO_CAPTION, (row.key,), why)
    yield from _each(texts, lengths, limit)
    yield from _shared(texts)
    yield from _boilerplate(texts)


def _usable(row: CaptionedImage, names: Sequence[str], missing: Missing) -> tuple[dict[str, str], str]:
    """The captions that an import takes, and why it would reject the row: it has none, or no `prompt` among others."""
    found: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for name in names:
        try:
            found[name] = caption_of(row, name, missing)
        except SampleError as error:
            reasons[name] = error.reason
    if not reasons or (any(found.values()) and PROMPT not in reasons):
        return found, ""
    return found, reasons.get(PROMPT) or next(iter(reasons.values()))


def _each(texts: Iterable[Named], lengths: Mapping[str, int] | None, limit: int) -> Iterator[Finding]:
    import ftfy

    for key, _, text in texts:
        if lengths is None and len(text) > LONG_CHARACTERS:
            yield Finding(kinds.LONG_CAPTION, (key,), f"{len(text):,} characters")
        elif lengths is not None and (count := lengths.get(text)):
            yield Finding(kinds.LONG_CAPTION, (key,), f"{count:,} tokens, of which {limit:,} are taken")
        if not text.isascii() and (mended := ftfy.fix_encoding(text)) != text:
            yield Finding(kinds.MOJIBAKE, (key,), f"{shortened(text)} → {shortened(mended)}")
        if match := _MARKUP.search(text):
            yield Finding(kinds.MARKUP, (key,), shortened(text[max(0, match.start() - 20) : match.end() + 40]))


def _shared(texts: Iterable[Named]) -> Iterator[Finding]:
    keys: dict[str, dict[str, None]] = defaultdict(dict)
    for key, _, text in texts:
        keys[" ".join(text.split()).casefold()][key] = None
    shared = [(text, tuple(found)) for text, found in keys.items() if len(found) > 1]
    for text, found in sorted(shared, key=lambda each: -len(each[1])):
        yield Finding(kinds.SAME_CAPTION, found, shortened(text))


def _boilerplate(texts: Sequence[Named]) -> Iterator[Finding]:
    """Phrases that begin or end many different captions, the commonest first; of one within another, the longer."""
    distinct = {text: key for key, _, text in texts}
    least = max(_SHARED_BY, int(len(distinct) * _SHARED_PART))
    counts: Counter[tuple[bool, str]] = Counter()
    for text in distinct:
        counts.update(_ends(text))
    common = [(phrase, count) for phrase, count in counts.items() if count >= least]
    told: list[tuple[bool, str, int]] = []
    for (at_end, phrase), count in sorted(common, key=lambda each: -len(each[0][1])):
        if not any(at_end == other and phrase in longer and count < 1.5 * n for other, longer, n in told):
            told.append((at_end, phrase, count))
    keys: dict[tuple[bool, str], dict[str, None]] = {
        (at_end, phrase): {} for at_end, phrase, _ in sorted(told, key=lambda each: -each[2])[:_SHOWN_PHRASES]
    }
    for key, _, text in texts:
        for end in _ends(text):
            if end in keys:
                keys[end][key] = None
    for (at_end, phrase), found in keys.items():
        yield Finding(kinds.BOILERPLATE, tuple(found), f"{'…' * at_end}{shortened(phrase)}{'…' * (not at_end)}")


def _ends(text: str) -> Iterator[tuple[bool, str]]:
    """The phrases that a caption begins and ends with: whether at its end, and the phrase."""
    words = text.split()
    for count in _PHRASE_WORDS:
        if len(words) > count:
            yield False, " ".join(words[:count])
            yield True, " ".join(words[-count:])


def shortened(text: str) -> str:
    """On one line, and not too long."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"


def too_long(model: str, rows: Iterable[CaptionedImage]) -> tuple[dict[str, int], int]:
    """The captions that a text encoder would cut off, with their tokens, and how many it takes. Raises ModelError."""
    from latentmill.encoders.text import text_spec

    spec = text_spec(model, device="cpu")
    texts = sorted({text.strip() for row in rows for text in row.captions.values()})
    found = {}
    for text, tokens in zip(texts, spec.tokenize(texts), strict=True):
        if tokens.full_length > len(tokens.ids):
            found[text] = tokens.full_length
    return found, spec.max_length

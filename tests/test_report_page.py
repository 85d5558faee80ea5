"""The report's page as a file: nothing from outside, everything escaped, every kind and extreme of a dataset drawn."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from latentmill.errors import ConfigError
from latentmill.report import charts, charts_data, shell
from latentmill.report.facts import (
    BucketFacts,
    Caption,
    CaptionFacts,
    ChannelFacts,
    ClassFacts,
    Histogram,
    LatentFacts,
    Quality,
    Row,
    SizeFacts,
)
from latentmill.report.page import render
from report_facts import HOSTILE, channel, empty, picture, report, shown, soundness, whole


class Parsed(HTMLParser):
    """The tags, attributes and text of a page, and its style and script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.raw: dict[str, str] = {}
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside in ("style", "script"):
            self.raw[self._inside] = self.raw.get(self._inside, "") + data
            self._inside = ""
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page() -> str:
    return render(report(whole()))


def sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def small(**changed: object) -> str:
    """A page of a dataset without what takes time to draw."""
    nothing: dict[str, object] = {
        "sizes": None, "buckets": (), "latents": None, "captions": (), "classes": None, "speed": None, "qualities": (),
    }  # fmt: skip
    return render(report(whole(1, **{**nothing, **changed})))


def test_the_policy_allows_the_page_itself_and_no_more(page: str) -> None:
    parsed = Parsed(page)
    policy = next(meta["content"] for meta in parsed.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    assert rules["style-src"] == f"'{sha256(parsed.raw['style'])}'"
    assert rules["script-src"] == f"'{sha256(parsed.raw['script'])}'"
    assert len(parsed.all("style")) == len(parsed.all("script")) == 1


def test_nothing_is_inline_and_nothing_is_outside(page: str) -> None:
    for tag, attributes in Parsed(page).tags:
        assert not {name for name in attributes if name == "style" or name.startswith("on")}, tag
        for name in ("src", "href", "action", "srcset", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)


def test_ids_are_unique_and_links_lead_somewhere() -> None:
    parsed = Parsed(render(report(whole(4), whole(5, name="again", sizes=None, latents=None, speed=None), empty())))
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag in ("a", "use"):
        links = [attributes["href"] or "" for attributes in parsed.all(tag)]
        assert links and {link[1:] for link in links} <= set(ids)


def test_the_same_facts_are_the_same_bytes(page: str) -> None:
    assert render(report(whole())) == page
    assert not re.search(r"20\d\d-\d\d-\d\d", page)


def test_a_picture_of_several_datasets_is_in_the_page_once() -> None:
    sample = shown(3)
    assert sample.original
    data = base64.b64encode(sample.original.data).decode()
    assert small(shown=(sample,), best=(), worst=()).count(data) == 1
    one = whole(1, shown=(sample,), best=(), worst=(), sizes=None, latents=None, captions=(), speed=None, classes=None)
    other = replace(one, name="again", shown=(replace(sample, captions=(Caption("prompt", "another caption"),)),))
    page = render(report(one, other, replace(one, name="third")))
    assert page.count(data) == 1
    assert page.count(f'aria-label="{sample.original.alt}"') == 2
    assert 'The same samples as of <a href="#dataset-1-seen">vae-sd</a>' in page


def test_what_a_person_asks_is_answered(page: str) -> None:
    text = " ".join(Parsed(page).text.split())
    for wanted in (
        "997 images as latents of sd-vae-ft-mse",
        "Sound 997 stored of 1,000 samples listed, 3 rejected. Checked: everything.",
        "Is it sound?", "What will the model see?", "How is it distributed?", "How fast was it made?",
        "decode: not an image", "revision 31f26fd", "25% cut away", "PSNR 20.0 dB SSIM 0.500", "90 tokens",
        "a photo of thing 0[cut off: and what is cut off]", "500 of 50,000 images, sampled",
        "Recorded is a scale of 0.1822, which gives deviation 0.867.",
        "Longer than 77, so that their end is lost: 524 (52.4%).",
        "Encoding took most of the time", "Drawn from 500 of 50,000 samples",
    ):  # fmt: skip
        assert wanted in text, wanted


@pytest.mark.parametrize(
    "facts, state, told",
    [
        (soundness(), "good", "Sound"),
        (soundness(problems=("a.npy: CRC-32 differs",)), "bad", "1 problem found"),
        (soundness(rejected=300), "warning", "Sound, with 300 images rejected"),
        (soundness(stored=0, listed=0, rejected=0), "bad", "Nothing is stored"),
        (soundness(checked=""), "warning", "Not checked"),
    ],
)
def test_the_verdict_is_what_was_found(facts: object, state: str, told: str) -> None:
    parsed = Parsed(small(soundness=facts))
    assert any(attributes.get("class") == f"verdict {state}" for attributes in parsed.all("div"))
    assert told in parsed.text


def test_what_could_not_be_shown_comes_first() -> None:
    text = Parsed(render(replace(report(empty()), left_out=("begun is left out: it is not finished",)))).text
    assert text.index("1 dataset not shown") < text.index("begun is left out") < text.index("Nothing is stored")


def test_the_median_is_one_number_wherever_it_stands() -> None:
    qualities = tuple(Quality(psnr, 0.5) for psnr in (20.0, 22.0, 23.0, 40.0))
    assert "half are below 22.5 dB" in (page := small(qualities=qualities)) and "<dd>22.5 dB</dd>" in page


def test_what_is_lost_is_told_beside_the_picture() -> None:
    captions = (Caption("prompt", "kept " * 300, "lost", 401),)
    losses = ((0.0, "nothing cut"), (0.004, "under 1% cut away"), (0.998, "over 99% cut away"), (0.25, "25% cut away"))
    for share, told in losses:
        sample = shown(0, cut_away=share, stretched=0.031, captions=captions)
        text = Parsed(small(shown=(sample,), best=(), worst=())).text
        assert told in text and "stretched 3%" in text and text.index("the end is cut off") < text.index("kept kept")


def test_stretched_buckets_tell_by_how_much() -> None:
    buckets = tuple(BucketFacts(size, 10, 0.0, 0.04, 0) for size in ((512, 512), (448, 576)))
    page = small(buckets=buckets)
    assert "One side is stretched by 4.0%" in page and "stretched by" in page and "Cropping takes" not in page


def test_no_tick_of_extreme_sizes_hides_another() -> None:
    drawn = charts_data.sizes(SizeFacts(np.array([1, 4000, 20]), np.array([1, 8, 3000]), 3), [(512, 512)], "sizes")
    ticks = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*"middle"[^>]*>(\d+)</text>', drawn)
    rows = [
        [(float(x), 7 * len(text)) for x, y, text in ticks if y == row] for row in dict.fromkeys(y for _, y, _ in ticks)
    ]
    assert len(rows) == 2 and all(len(row) >= 4 for row in rows)  # both widths of the chart
    assert all(x + wide / 2 < after - next_wide / 2 for row in rows for (x, wide), (after, next_wide) in pairwise(row))


def test_hostile_text_stays_text() -> None:
    rows = (Row(HOSTILE, HOSTILE, HOSTILE),)
    sample = shown(0, key=HOSTILE, name=HOSTILE + "2", label=HOSTILE, original=picture(1, alt=HOSTILE))
    lengths = CaptionFacts(HOSTILE, HOSTILE, np.array([3, 4]), 77, 0, 2)
    page = small(
        name=HOSTILE, summary=HOSTILE, identity=rows, notes=(HOSTILE,), shown=(sample, shown(1)),
        soundness=soundness(problems=(HOSTILE,), by_reason=((HOSTILE, 2),), notes=((HOSTILE, 1),)),
        classes=ClassFacts((HOSTILE, "$x$", "a & b", "日本"), np.array([1, 2, 3, 4])), captions=(lengths,),
    )  # fmt: skip
    parsed = Parsed(page)
    assert len(parsed.all("script")) == 1
    assert all((image["src"] or "").startswith("data:") for image in parsed.all("img"))
    assert "alert(1)" in parsed.text and "{{7*7}}" in parsed.text and "$x$" in parsed.text and "日本" in parsed.text
    assert not re.search("[\x00-\x08\x0b-\x1f\ud800-\udfff]", page)


def test_extremes_are_drawn() -> None:
    nothing = render(report(empty()))
    assert "Nothing is stored" in nothing and "<img" not in nothing
    assert "Nothing was found here" in render(report())
    one = render(report(whole(1, 1, sizes=SizeFacts(np.array([1]), np.array([65000]), 1))))
    assert "1 class of" not in one or "1 classes" not in one
    pictureless = shown(0, original=None, model_input=None, reconstruction=None, quality=None, size=None, bucket=None)
    assert "photos/000.jpg" in small(shown=(pictureless,), best=(), worst=())


def test_numbers_that_are_none_are_not_written() -> None:
    qualities = (Quality(float("inf"), 1.0), Quality(float("nan"), float("nan")), Quality(30.0, 0.9))
    samples = tuple(shown(at, quality=quality) for at, quality in enumerate(qualities))
    parsed = Parsed(small(shown=samples, qualities=qualities, best=(), worst=()))
    text = parsed.text + "".join(item["data-sort"] or "" for item in parsed.all("li") if "data-sort" in item)
    assert "NaN" not in text and "Infinity" not in text and not re.search(r"\bnan\b", text)
    assert "no difference" in text


def test_a_thousand_classes_are_a_curve_and_a_short_table() -> None:
    counts = np.arange(1000) + 1
    page = small(classes=ClassFacts(tuple(f"n{at:08d}" for at in range(1000)), counts))
    assert "1,000 classes. The largest, n00000999, has 1,000 images; the smallest, n00000000, has 1 image." in page
    assert page.count('<th scope="row">n0') == 40
    assert len(page) < 200_000


def test_images_in_no_folder_are_a_class_with_a_name() -> None:
    page = small(classes=ClassFacts(("", "holidays"), np.array([25, 2])))
    assert "The largest, (no folder), has 25 images; the smallest, holidays, has 2 images." in page


def test_five_thousand_sizes_are_a_small_chart() -> None:
    random = np.random.default_rng(0)
    sizes = SizeFacts(random.integers(200, 8000, 5000), random.integers(200, 8000, 5000), 5000)
    drawn = charts_data.sizes(sizes, [(512, 512)], "sizes")
    assert 5000 * 10 < len(drawn) < 300_000
    assert drawn.count("h0") >= 2 * 4900  # a dot each, in both widths


def test_charts_are_well_formed_and_in_the_pages_colours() -> None:
    drawn = [
        charts.bars(["a<b", "c"], [0.0, 0.0], 'bars "x"'),
        charts.histogram(np.array([0.0, 1.0, 2.0]), np.array([3, 0]), "histogram", unit="u", beyond=1.0),
        charts.curve(np.array([0.0, 1.0]), np.array([0.0, 0.0]), "curve", x_unit="s", y_unit="n"),
        charts.ranks(np.array([5, 1, 1]), "ranks", x_unit="n", y_unit="n"),
        charts_data.channels([channel(0), channel(1)], "channels"),
    ]
    for chart in drawn:
        root = ElementTree.fromstring(f"<div>{chart}</div>")
        assert len(root.findall(".//svg")) == 2
        assert not re.search(r"style=|\bid=|url\(|<use|#[0-9a-f]{6}|date", chart)
        assert all(svg.get("aria-label") for svg in root.iter("svg"))


def test_latents_of_many_channels_and_flat_ones() -> None:
    edges = np.linspace(-1, 1, 11)
    flat = ChannelFacts(15, Histogram(edges, np.zeros(10, int)), 0.0, 0.0, None, None, 1.0, 0.0)
    facts = LatentFacts((*map(channel, range(15)), flat), None, None, 1.0, 0.0, 12, True)
    page = small(latents=facts)
    assert "Over the whole dataset, a scale of 1 and a shift of 0 would give mean 0 and deviation 1." in page
    assert page.count(">channel 15<") == 2


def test_without_matplotlib_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'latentmill[report]'")):
        render(report(empty()))


def test_tables_tell_numbers_from_words() -> None:
    table = shell.table(["name", "n", "share"], [["a", 1234567, 0.5], ["b", None, float("inf")]], caption="c")
    cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", table)
    assert cells == ["name", "n", "share", "a", "1,234,567", "0.5", "b", "–", "∞"]

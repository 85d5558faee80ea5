"""`latentmill compare-vae`: its figures are those of the real commands, failures are told, claims are borne out."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

import latentmill
from latentmill.comparing import contender, session
from latentmill.comparing.cases import AMPLIFIED, _where, chosen, difference
from latentmill.comparing.contender import labels, split_name
from latentmill.comparing.latents import dead_channels
from latentmill.comparing.overview import lines
from latentmill.comparing.page import page
from latentmill.comparing.photos import spread
from latentmill.comparing.reading import chance, reading
from latentmill.comparing.result import FLIP, PSNR, SSIM, Comparison, Spread
from latentmill.comparing.turns import parts
from latentmill.decoding import decode
from latentmill.errors import ConfigError, ModelError, SampleError, SourceError
from latentmill.formats.metadata import Metadata, index_rows
from latentmill.outcome import Event
from latentmill.records import Array, SampleRef
from latentmill.report import metrics
from support import cli_here, make_photos
from tiny_vaes import saved_vae

SIDE = 64
HOW: dict[str, Any] = {"resolution": f"{SIDE}x{SIDE}", "batch_size": 4, "threads": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of 10 photos, and VAEs in folders."""
    root = tmp_path_factory.mktemp("compare")
    make_photos(root / "photos", 10, side=80)
    return {"photos": root / "photos", **{name: saved_vae(name, root / "vaes" / name) for name in ("sd", "dc-ae")}}


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return []


@pytest.fixture(scope="module")
def found(places: dict[str, Path], events: list[Event]) -> Comparison:
    names = ["mini", str(places["sd"]), "no-such-vae", str(places["dc-ae"])]
    return latentmill.compare_vae(places["photos"], names, tell=events.append, **HOW)


def made(places: dict[str, Path], root: Path, model: str, store: str) -> tuple[list[Path], list[Array], list[Array]]:
    """What `encode` and `decode` make of the same photos: latent files, crops and pictures, in order of the keys."""
    how = {"resolution": HOW["resolution"], "transform": "center-crop-dhariwal", "threads": 1, "device": "cpu"}
    latents, images, decoded = (root / name for name in ("latents", "images", "decoded"))
    latentmill.encode(places["photos"], latents, model_url=model, store=store, images=images, batch_size=4, **how)
    latentmill.decode(latents, decoded, threads=1, device="cpu", batch_size=4)
    pictures = [[decode(path.read_bytes())[0] for path in sorted(place.rglob("*.png"))] for place in (images, decoded)]
    return sorted(latents.rglob("*.npy")), pictures[0], pictures[1]


@pytest.mark.parametrize(("name", "store"), [("mini", "moments"), ("dc-ae", "mean")])
def test_scores_sizes_and_statistics_are_those_of_what_encode_and_decode_make(
    name: str, store: str, places: dict[str, Path], found: Comparison, tmp_path: Path
) -> None:
    (each,) = (one for one in found.candidates if one.name == name)
    files, crops, pictures = made(places, tmp_path, str(places.get(name, name)), store)
    pairs = list(zip(crops, pictures, strict=True))
    for metric, measure in ((PSNR, metrics.psnr), (SSIM, metrics.ssim), (FLIP, metrics.flip)):
        assert each.scores[metric.name] == pytest.approx([measure(*pair) for pair in pairs], rel=2e-3)
    assert {path.stat().st_size for path in files} == {each.bytes_stored[f"{store} float32"]}
    recorded = Metadata.read_beside(tmp_path / "latents")
    assert recorded is not None and recorded.statistics is not None
    assert each.latents.mean == pytest.approx(recorded.statistics.mean, rel=1e-4, abs=1e-5)
    assert each.latents.std_sampled == pytest.approx(recorded.statistics.std_sampled, rel=1e-4)
    assert len(list(index_rows(tmp_path / "latents"))) == len(found.keys)


def test_the_suggested_scale_and_shift_bring_draws_to_mean_0_and_deviation_1(found: Comparison) -> None:
    for each in found.candidates:
        scale, shift = each.latents.suggested
        mean = each.latents.mean.mean()
        square = (each.latents.std_sampled**2 + each.latents.mean**2).mean()
        assert (mean - shift) * scale == pytest.approx(0, abs=1e-9)
        assert np.sqrt(square - 2 * shift * mean + shift**2) * scale == pytest.approx(1)


def test_the_models_own_normalisation_is_applied_to_what_is_told(found: Comparison) -> None:
    (dc,) = (each for each in found.candidates if each.name == "dc-ae")
    assert dc.latents.normalised[0] == pytest.approx(dc.latents.overall_mean * 0.41407, rel=1e-4)
    assert dc.latents.normalised[1] == pytest.approx(dc.latents.overall_std * 0.41407, rel=1e-4)
    assert "moments float32" not in dc.bytes_stored


def test_a_vae_that_is_missing_is_told_and_the_others_go_on(found: Comparison, events: list[Event]) -> None:
    assert [each.name for each in found.candidates] == ["mini", "sd", "dc-ae"]
    ((name, reason),) = found.failures
    assert name == "no-such-vae" and "no-such-vae" in reason
    assert any(event.kind == "warning" and "no-such-vae is left out" in event.text for event in events)
    last = [event for event in events if event.kind == "progress"][-1]
    assert last.done == last.total == 30


def test_a_vae_that_fails_on_the_way_is_left_out(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = contender.decode_turn

    def failing(one: contender.Contender, *given: Any) -> contender.Turn:
        if one.label == "sd":
            raise ModelError("not even one latent fits in the device's memory")
        return whole(one, *given)

    monkeypatch.setattr("latentmill.comparing.turns.decode_turn", failing)
    result = latentmill.compare_vae(places["photos"], [str(places["sd"]), "mini"], sample=3, **HOW)
    assert [each.name for each in result.candidates] == ["mini"]
    assert result.failures == (("sd", "not even one latent fits in the device's memory"),)


def test_a_vae_whose_pictures_are_all_not_finite_is_left_out(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contender.decode_turn

    def failing(one: contender.Contender, *given: Any) -> contender.Turn:
        turn = whole(one, *given)
        if one.label == "sd":
            turn.results = [SampleError("encode", "the picture is not finite (NaN or infinity)") for _ in turn.results]
        return turn

    monkeypatch.setattr("latentmill.comparing.turns.decode_turn", failing)
    result = latentmill.compare_vae(places["photos"], [str(places["sd"]), "mini"], sample=3, **HOW)
    assert [each.name for each in result.candidates] == ["mini"]
    assert "it gave no picture that is finite" in dict(result.failures)["sd"]


def test_a_photo_is_never_written_over(places: dict[str, Path], tmp_path: Path) -> None:
    photo = tmp_path / "cat.jpg"
    photo.write_bytes(b"\xff\xd8\xff a photo")
    ran = cli_here("compare-vae", places["photos"], "--vae", "mini", "--out", photo)
    assert ran.returncode == 2
    assert "Give another name, or remove it" in " ".join(ran.stderr.split())
    assert photo.read_bytes() == b"\xff\xd8\xff a photo"


def test_where_none_works_it_is_an_error(places: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"no VAE could be compared\. no-such-a: .*; fake: fake is an encoder without"):
        latentmill.compare_vae(places["photos"], ["no-such-a", "fake"], sample=2, **HOW)


@pytest.mark.parametrize("rule", ["refuse", "pad", "crop"])
def test_sides_that_a_factor_does_not_divide(rule: str, places: dict[str, Path]) -> None:
    how = {**HOW, "resolution": "48x48", "indivisible": rule}
    result = latentmill.compare_vae(places["photos"], ["mini", str(places["dc-ae"])], sample=3, **how)
    if rule == "refuse":
        assert [each.name for each in result.candidates] == ["mini"]
        assert "multiples of 32. Found: 48x48; give another --resolution, or --indivisible" in result.failures[0][1]
        return
    dc = result.candidates[1]
    assert dc.divided == ((64, 64) if rule == "pad" else (32, 32))
    assert dc.latents.shape == ((4, 2, 2) if rule == "pad" else (4, 1, 1))
    assert not np.isnan(dc.scores["PSNR"]).any()
    assert {case.restored["dc-ae"].shape for case in result.worst} == {(48, 48, 3)}


def test_half_precision_that_overflows_is_told(places: dict[str, Path], tmp_path: Path) -> None:
    vae = AutoencoderKL.from_pretrained(places["sd"])
    with torch.no_grad():
        vae.encoder.conv_in.weight *= 3e5
    vae.save_pretrained(tmp_path / "fragile", safe_serialization=True)
    result = latentmill.compare_vae(places["photos"], str(tmp_path / "fragile"), sample=3, dtype="float16", **HOW)
    assert result.candidates[0].recomputed == 3
    assert "3 overflowed and were computed again in float32" in lines(result)[1][0][-1]


def test_photos_that_cannot_be_used_are_told_and_the_sample_is_always_the_same(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 9, side=64)
    (tmp_path / "photos" / "c0" / "a.jpg").write_bytes(b"no picture")
    two = [latentmill.compare_vae(tmp_path / "photos", "mini", sample=5, **HOW) for _ in range(2)]
    assert two[0].keys == two[1].keys
    assert len(two[0].keys) == 4 and two[0].conditions.listed == 10
    assert [key for key, _ in two[0].conditions.left_out] == ["c0/a.jpg"]
    assert np.array_equal(two[0].candidates[0].scores["PSNR"], two[1].candidates[0].scores["PSNR"])


def test_a_table_of_images_is_a_source_too(places: dict[str, Path], tmp_path: Path) -> None:
    keys = [path.relative_to(places["photos"]).as_posix() for path in sorted(places["photos"].rglob("*.jpg"))][:4]
    table = tmp_path / "table.jsonl"
    table.write_text("".join(json.dumps({"path": key}) + "\n" for key in keys))
    result = latentmill.compare_vae(table, "mini", images=places["photos"], **HOW)
    assert list(result.keys) == keys
    (tmp_path / "not.txt").write_text(keys[1] + "\n")
    result = latentmill.compare_vae(table, "mini", images=places["photos"], exclude=tmp_path / "not.txt", **HOW)
    assert list(result.keys) == [keys[0], *keys[2:]]


@pytest.mark.parametrize(
    ("vaes", "settings", "said"),
    [
        ([], {}, "at least one VAE"),
        (["mini", "mini"], {}, "compared once. Found twice: mini"),
        (["mini"], {"sample": 0}, "sample must be a whole number above 0"),
        (["mini"], {"batch_size": True}, "batch-size must be a whole number"),
        (["mini"], {"seed": 3}, "no setting seed. There are: .*resolution"),
        (["mini"], {"resolution": "8x8"}, "sides of 11 pixels. Found crops of 8x8"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    vaes: list[str], settings: dict[str, Any], said: str, places: dict[str, Path]
) -> None:
    with pytest.raises(ConfigError, match=said):
        latentmill.compare_vae(places["photos"], vaes, **{**HOW, **settings})


def test_without_a_photo_that_can_be_used_it_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(SourceError, match=r"none of 1 photos of .* can be used; the first, a\.jpg: "):
        latentmill.compare_vae(tmp_path, "mini", **HOW)


# the page, the table, the command


def test_the_table_marks_the_best_of_each_column(found: Comparison) -> None:
    headings, cells = lines(found)
    medians = {each.name: each.spread(PSNR).median for each in found.candidates}
    assert [line[0] for line in cells] == sorted(medians, key=lambda name: -medians[name])
    for heading in ("PSNR, dB", "SSIM", "FLIP", "encode/s", "decode/s", "bytes/image"):
        assert 1 <= sum(line[headings.index(heading)].endswith("*") for line in cells) < len(cells), heading
    assert cells[0][headings.index("PSNR, dB")].endswith("*")
    small = cells[[line[0] for line in cells].index("dc-ae")]
    assert small[headings.index("bytes/image")].endswith("*")


def test_the_page_shows_everything_and_asks_for_nothing(found: Comparison) -> None:
    text = page(found)
    for each in found.candidates:
        assert f"{each.name}: difference ×{AMPLIFIED}" in text
    assert "no-such-vae" in text and found.reading.split(".")[0] in text
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert not re.findall(r"\bstyle=", text)
    assert text.count("<svg") >= 2 * 4  # each chart in two sizes
    assert len(found.worst) == 8 and all(set(case.restored) == {"mini", "sd", "dc-ae"} for case in found.worst)


def test_figures_are_json_with_nothing_lost(found: Comparison) -> None:
    table = json.loads(json.dumps(found.as_table(), allow_nan=False))
    assert [vae["name"] for vae in table["vaes"]] == ["mini", "sd", "dc-ae"]
    for vae in table["vaes"]:
        assert len(vae["scores"]["PSNR"]["each"]) == len(table["images"]) == 10
        assert vae["encode"]["median_ms"] > 0
        assert vae["latent"]["shape"][0] == vae["model"]["latent_channels"]
    assert table["failures"].keys() == {"no-such-vae"}
    assert "<table" in found._repr_html_()


def test_the_command_prints_writes_and_tells_failures(places: dict[str, Path], tmp_path: Path) -> None:
    ran = cli_here(
        "compare-vae", places["photos"], "--vae", "mini", "--vae", tmp_path / "nothing", "--sample", 3, "--threads", 1,
        "--resolution", "64x64", "--out", tmp_path / "c.html", "--json-file", tmp_path / "c.json",
    )  # fmt: skip
    assert ran.returncode == 3, ran.stderr
    assert re.search(r"^mini +\d+\.\d\d \(\d+\.\d\d\)", ran.stdout, re.MULTILINE)
    assert "nothing is left out" in " ".join(ran.stderr.split())
    assert "mini keeps a median PSNR" in ran.stdout
    assert json.loads((tmp_path / "c.json").read_text())["vaes"][0]["name"] == "mini"
    assert "</html>" in (tmp_path / "c.html").read_text()


def test_a_place_that_is_not_there_is_refused_before_the_work(places: dict[str, Path], tmp_path: Path) -> None:
    ran = cli_here("compare-vae", places["photos"], "--vae", "mini", "--out", tmp_path / "none" / "c.html")
    assert ran.returncode == 2
    assert "expected a file to write, in a folder that is there" in " ".join(ran.stderr.split())


# parts


@pytest.mark.parametrize("count", [1, 4, 5, 8, 9, 33, 64])
def test_every_photo_has_a_turn_in_whole_batches(count: int) -> None:
    ranges = parts(count, 4)
    assert [number for part in ranges for number in part] == list(range(count))
    assert 1 <= len(ranges) <= 3
    assert all(len(part) % 4 == 0 for part in ranges[:-1]) and all(ranges)


@pytest.mark.parametrize(("there", "asked"), [(5, 8), (8, 8), (15, 8), (1000, 7)])
def test_a_sample_is_spread_evenly_from_the_first_on(there: int, asked: int) -> None:
    picked = [ref.index for ref in spread([SampleRef(number, "", "") for number in range(there)], asked)]
    assert len(picked) == min(there, asked) and picked[0] == 0
    steps = np.diff(picked)
    assert steps.min() >= 1 and steps.max() - steps.min() <= 1


def test_names_with_a_folder_and_a_revision(tmp_path: Path) -> None:
    assert split_name("flux.1") == ("flux.1", None, None)
    assert split_name("owner/name") == ("owner/name", None, None)
    assert split_name("owner/name/vae@abc") == ("owner/name", "abc", "vae")
    assert split_name(str(tmp_path)) == (str(tmp_path), None, None)
    (tmp_path / "a" / "vae").mkdir(parents=True)
    (tmp_path / "b" / "vae").mkdir(parents=True)
    one, two = str(tmp_path / "a" / "vae"), str(tmp_path / "b" / "vae")
    assert labels([one, "mini"]) == {one: "vae", "mini": "mini"}
    assert labels([one, two]) == {one: one, two: two}


def test_dead_channels_are_constant_or_noise() -> None:
    std = np.array([1.0, 0.9, 0.001, 0.05, 0.0])
    sampled = np.array([1.01, 0.91, 0.002, 1.0, 0.0])
    assert dead_channels(std, sampled) == (2, 3, 4)


def test_the_worst_end_of_a_spread_is_where_a_measure_is_bad() -> None:
    values = np.array([*np.arange(100.0), np.nan])
    assert Spread.of(values, PSNR) == Spread(49.5, 4.0)
    assert Spread.of(values, FLIP) == Spread(49.5, 95.0)


def test_worst_cases_are_the_hardest_and_those_that_differ() -> None:
    scores = np.full((2, 9), 30.0)
    scores[:, 4] = 10, 12
    scores[:, 7] = 45, 25
    scores[0, 2] = np.nan
    found = chosen(scores, 1)
    assert [number for number, _ in found] == [4, 7]
    error = np.zeros((100, 120))
    error[60:90, 80:110] = 1
    assert _where(error, 40) in {(top, left) for top in range(50, 61) for left in range(70, 81)}
    assert _where(error, 500) == (0, 0)
    crop = np.full((2, 2, 3), 100, np.uint8)
    assert difference(crop, crop + np.uint8(3)).max() == 3 * AMPLIFIED and not difference(crop, crop).any()


def test_a_claim_is_made_only_where_the_photos_bear_it_out(found: Comparison) -> None:
    assert chance(8, 8) == 2**-8 and chance(0, 8) == 1
    one, two = found.candidates[:2]

    def with_gains(gains: list[float]) -> str:
        base = np.full(len(gains), 20.0)
        scores = [{**each.scores, "PSNR": values, "SSIM": base, "FLIP": base} for each, values in
                  ((one, base + gains), (two, base))]  # fmt: skip
        pair = tuple(replace(each, scores=known) for each, known in zip((one, two), scores, strict=True))
        return reading(replace(found, candidates=pair))

    assert "mini keeps most: by PSNR it is better than sd, the next, on 12 of 12" in with_gains([1.0] * 12)
    assert "do not tell mini and sd apart" in with_gains([1.0] * 7 + [-1.0] * 5)
    assert "do not tell" in with_gains([1.0] * 4)
    assert "not how well a model trains" in with_gains([1.0] * 12)


def test_without_flip_the_others_are_measured(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.metrics, "can_flip", lambda: False)
    result = latentmill.compare_vae(places["photos"], "mini", sample=2, **HOW)
    assert [metric.name for metric in result.metrics] == ["PSNR", "SSIM"]
    assert "FLIP" not in lines(result)[0] and "FLIP of every photo" not in page(result)

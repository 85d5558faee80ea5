import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import latentmill
from latentmill.errors import ConfigError, DestinationError, ModelError, SourceError
from latentmill.formats.payload import png_pixels
from latentmill.live import Timeline
from latentmill.report.collect import collect
from latentmill.report.collect_index import spread
from latentmill.report.facts import DatasetFacts, ReportFacts
from latentmill.report.make import make_report
from latentmill.report.metrics import psnr
from latentmill.transforms.crop import crop_geometry
from latentmill.transforms.fit import kept
from support import TINY_VAE, cli, make_photos
from tiny_vaes import saved_vae

SIDE, LENGTH = 64, 8
LONG = "a long caption of a coloured grid, " + "very " * 20 + "nice"


def _recipe(photos: Path, dest: Path) -> latentmill.Recipe:
    return latentmill.Recipe(
        str(photos),
        {
            "images": {"kind": "pixels", "transform": "center-crop-dhariwal", "resolution": f"{SIDE}x{SIDE}"},
            "text": {"kind": "text", "model": "mini", "max_length": LENGTH},
            "buckets": {
                "kind": "latents", "layout": "pixart", "model": "mini", "resolution": SIDE, "multi_scale": True,
                "buckets": "auto:2:8", "fit": "cover",
            },
        },
        dest=str(dest),
        run_settings={"num_workers": 1, "threads": 1, "max_failures": "100%"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Eight photos of two shapes and two classes with captions, two of them broken, and all that is made of them."""
    root = tmp_path_factory.mktemp("report")
    photos, data = root / "photos", root / "data"
    paths = make_photos(photos, 8, side=80)
    for number, path in enumerate(paths):
        path.with_suffix(".txt").write_text(LONG if number == 2 else f"grid {number}")
        if number % 2:
            Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, quality=90)
    whole = paths[6].read_bytes()
    paths[6].write_bytes(whole[: len(whole) * 2 // 3])
    paths[7].write_text("no picture")
    results = _recipe(photos, data).run()
    latentmill.encode(data / "images", data / "latents", model_url="mini", threads=1, num_workers=1)
    return SimpleNamespace(root=root, photos=photos, data=data, paths=paths, results=results, facts=collect(data))


def _of(facts: ReportFacts, name: str) -> DatasetFacts:
    return next(each for each in facts.datasets if each.name == name)


def _copy(made: SimpleNamespace, tmp_path: Path, *names: str) -> Path:
    for name in names:
        shutil.copytree(made.data / name, tmp_path / name)
    return tmp_path


def _pixels(picture: object) -> np.ndarray:
    import io

    return np.asarray(Image.open(io.BytesIO(picture.data)).convert("RGB")).astype(int)  # type: ignore[attr-defined]


def test_every_dataset_of_a_result_is_told_latents_first_and_found_sound(made: SimpleNamespace) -> None:
    facts = made.facts
    assert [(each.name, each.kind) for each in facts.datasets] == [
        ("buckets", "latents"), ("latents", "latents"), ("text", "text"), ("images", "images"),
    ]  # fmt: skip
    assert all(each.soundness.problems == () for each in facts.datasets)
    assert _of(facts, "latents").soundness.checked == "everything, and that it pairs with images"
    assert (_of(facts, "images").soundness.stored, _of(facts, "images").soundness.rejected) == (6, 2)
    assert facts.sampled == ""  # all of it was looked at
    rows = {row.name: row.value for row in _of(facts, "latents").identity}
    assert rows["Model"] == "mini"
    assert rows["Source"] == str(made.data / "images")


def test_a_sample_shows_original_crop_reconstruction_and_caption_of_one_photo(
    made: SimpleNamespace, tmp_path: Path
) -> None:
    shown = _of(made.facts, "latents").shown
    assert [each.key for each in shown] == [path.relative_to(made.photos).as_posix() for path in made.paths[:6]]
    first = shown[0]
    with Image.open(made.paths[0]) as photo:
        size = (photo.height, photo.width)
    assert (first.size, first.bucket, first.label) == (size, (SIDE, SIDE), "c0")
    assert first.cut_away == pytest.approx(
        1 - kept(crop_geometry("center-crop-dhariwal", size, (SIDE, SIDE))), abs=0.02
    )
    assert [caption.kept for caption in first.captions] == ["grid 0"]
    assert first.original is not None and first.model_input is not None and first.reconstruction is not None
    # the left edge of the wide photo is shaded, its middle is not
    seen, whole = _pixels(first.original), np.asarray(Image.open(made.paths[0])).astype(int)
    assert np.abs(seen - whole)[:, 2].mean() > 30 > 12 > np.abs(seen - whole)[:, size[1] // 2].mean()
    stored = png_pixels((made.data / "images/00000/img00000000.png").read_bytes())
    assert np.abs(_pixels(first.model_input) - stored).mean() < 6  # but for JPEG
    latentmill.decode(made.data / "latents", tmp_path / "back", threads=1)
    back = png_pixels((tmp_path / "back/00000/img00000000.png").read_bytes())
    assert first.quality is not None
    assert first.quality.psnr == pytest.approx(psnr(stored, back), abs=0.05)
    latents = _of(made.facts, "latents")
    ranked = [each.quality.psnr for each in (*latents.best, *latents.worst[::-1]) if each.quality is not None]
    assert len(ranked) == 6
    assert ranked == sorted(ranked, reverse=True)


def test_buckets_are_shown_with_what_they_lose_and_their_own_crop(made: SimpleNamespace) -> None:
    facts = _of(made.facts, "buckets")
    assert sum(bucket.images for bucket in facts.buckets) == 6
    assert {bucket.size for bucket in facts.buckets} <= set(facts.bucket_table)
    for bucket in facts.buckets:
        assert len(bucket.shown) == min(4, bucket.images)
        assert bucket.lost is not None
        for each in bucket.shown:
            assert each.model_input is not None and each.original is not None
            assert (each.bucket, each.model_input.height, each.model_input.width) == (bucket.size, *bucket.size)
            assert each.original.height * each.original.width == 80 * 106
    assert facts.sizes is not None
    assert sorted(zip(facts.sizes.heights.tolist(), facts.sizes.widths.tolist(), strict=True)) == (
        [(80, 106)] * 3 + [(106, 80)] * 3
    )


def test_captions_tell_their_tokens_and_what_truncation_cut_off(made: SimpleNamespace) -> None:
    facts = _of(made.facts, "text")
    (lengths,) = facts.captions
    cut = next(each for each in facts.shown if each.key == "c0/photo00002.jpg").captions[0]
    assert cut.kept + cut.cut == LONG
    assert cut.kept and cut.cut
    assert cut.tokens is not None and cut.tokens > LENGTH
    assert (lengths.max_length, lengths.truncated, lengths.of) == (LENGTH, 1, 8)
    assert cut.tokens == lengths.lengths.max()
    short = next(each for each in facts.shown if each.key == "c0/photo00001.jpg").captions[0]
    assert (short.kept, short.cut) == ("grid 1", "")


def test_captions_that_were_not_encoded_are_those_of_the_source(made: SimpleNamespace, tmp_path: Path) -> None:
    place = _copy(made, tmp_path, "buckets") / "buckets"
    shown = collect(place, decode=False, verify="none").datasets[0].shown
    assert [each.captions[0].kept for each in shown] == [LONG if n == 2 else f"grid {n}" for n in range(6)]


def test_rejects_show_what_can_be_decoded_of_them(made: SimpleNamespace) -> None:
    soundness = _of(made.facts, "images").soundness
    pictures = {reject.key: reject.picture for reject in soundness.some}
    assert set(pictures) == {"c1/photo00006.jpg", "c1/photo00007.jpg"}
    assert pictures["c1/photo00006.jpg"] is not None  # two thirds of it
    assert pictures["c1/photo00007.jpg"] is None
    assert sum(count for _, count in soundness.by_reason) == 2


def test_latents_suggest_what_brings_them_to_mean_0_and_deviation_1(made: SimpleNamespace) -> None:
    facts = _of(made.facts, "latents").latents
    assert facts is not None
    files = sorted((made.data / "latents").rglob("*.npy"))
    means = np.stack([np.load(file)[:4] for file in files]).astype(np.float64)
    stds = np.stack([np.load(file)[4:] for file in files]).astype(np.float64)
    assert (facts.files, facts.whole_dataset) == (6, True)
    for c, channel in enumerate(facts.channels):
        drawn = np.sqrt(means[:, c].var() + np.square(stds[:, c]).mean())
        assert channel.mean == pytest.approx(means[:, c].mean(), rel=1e-5, abs=1e-6)
        assert channel.std == pytest.approx(means[:, c].std(), rel=1e-5)
        assert channel.suggested_scale == pytest.approx(1 / drawn, rel=1e-5)
        assert channel.recorded_scale == pytest.approx(0.1509)
        values = channel.histogram.counts.sum() + channel.histogram.below + channel.histogram.above
        assert values == means[:, c].size
    total = np.sqrt(means.var() + np.square(stds).mean())
    assert facts.overall_scale == pytest.approx(1 / total, rel=1e-5)
    assert facts.recorded_scale == pytest.approx(0.1509)
    assert facts.recorded_shift == 0.0


def test_classes_and_speed_are_told_and_the_timeline_ends_with_all_images(made: SimpleNamespace) -> None:
    facts = _of(made.facts, "images")
    assert facts.classes is not None and facts.speed is not None
    assert (facts.classes.names, facts.classes.counts.tolist()) == (("c0", "c1"), [4, 2])
    assert facts.speed.timeline[-1, 1] == 8
    assert (np.diff(facts.speed.timeline, axis=0) >= 0).all()
    assert facts.speed.timeline[-1, 0] <= facts.speed.seconds + 0.01
    assert facts.speed.bottleneck.endswith(".")


def test_a_report_is_the_same_again_but_for_its_time(made: SimpleNamespace) -> None:
    again = collect(made.data / "images", verify="none")
    first = _of(made.facts, "images")
    assert again.datasets[0].shown == first.shown
    assert again.datasets[0].soundness == replace(first.soundness, checked="")


def test_photos_that_changed_or_went_are_not_shown_and_that_is_said(made: SimpleNamespace, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(made.photos, photos)
    first, second = (photos / path.relative_to(made.photos) for path in made.paths[:2])
    shutil.copy(made.paths[3], first)
    second.unlink()
    facts = collect(made.data / "latents", source=photos, decode=False, verify="none").datasets[0]
    assert [each.original is None for each in facts.shown] == [True, True, False, False, False, False]
    assert all(each.model_input is not None for each in facts.shown)  # of the stored pixels
    notes = "\n".join(facts.notes)
    assert f"1 originals in {photos} are changed since they were used" in notes
    assert f"1 originals in {photos} are not there any more" in notes
    assert "--no-decode" in notes


def test_without_a_source_what_is_missing_is_said_with_what_to_do(made: SimpleNamespace, tmp_path: Path) -> None:
    place = _copy(made, tmp_path, "buckets") / "buckets"
    recipe = place / "latentmill-recipe.toml"
    recipe.write_text(recipe.read_text().replace(str(made.photos), str(tmp_path / "gone")))
    facts = collect(place, decode=False).datasets[0]
    assert all(each.original is None and each.model_input is None for each in facts.shown)
    assert any("gone is not there. --source names" in note for note in facts.notes)
    assert all(each.captions == () for each in facts.shown)
    found = collect(place, source=made.photos, decode=False).datasets[0]
    assert all(each.original is not None and each.model_input is not None for each in found.shown)
    with pytest.raises(SourceError, match="nowhere is not there"):
        collect(place, source=tmp_path / "nowhere", decode=False)


def test_a_mirrored_variant_is_shown_as_the_model_sees_it(made: SimpleNamespace, tmp_path: Path) -> None:
    latentmill.convert(
        made.photos, tmp_path / "images", resolution=f"{SIDE}x{SIDE}", transform="center-crop-dhariwal", flip="both",
        max_failures="100%", num_workers=1,
    )  # fmt: skip
    plain, mirrored = (each.shown[0] for each in collect(tmp_path, verify="none").datasets)
    assert plain.model_input is not None and mirrored.model_input is not None
    assert np.abs(_pixels(plain.model_input)[:, ::-1] - _pixels(mirrored.model_input)).mean() < 6
    assert plain.original == mirrored.original
    assert "mirrored" in " ".join(collect(tmp_path / "images-flip", verify="none").datasets[0].notes)


def test_another_vae_can_be_named_where_it_fits(made: SimpleNamespace, tmp_path: Path) -> None:
    other = collect(made.data / "latents", vae=str(TINY_VAE), sample=1, verify="none").datasets[0].shown[0]
    own = _of(made.facts, "latents").shown[0]
    assert other.quality is not None and own.quality is not None
    assert other.quality.psnr < own.quality.psnr  # of random weights
    with pytest.raises(ConfigError, match=r"--vae must have 4 channels at 1/8 .* Found: .* with 16 "):
        collect(made.data / "latents", vae=str(saved_vae("sd3", tmp_path)), verify="none")
    with pytest.raises(ModelError, match="no model is called 'minni'"):
        collect(made.data / "latents", vae="minni", verify="none")


def test_what_is_wrong_is_told_and_a_sample_reads_less_but_misses_no_name(
    made: SimpleNamespace, tmp_path: Path
) -> None:
    place = _copy(made, tmp_path, "images") / "images"
    damaged, lost = place / "00000/img00000001.png", place / "00000/img00000002.png"
    data = bytearray(damaged.read_bytes())
    data[-20] ^= 1
    damaged.write_bytes(data)
    lost.unlink()
    facts = collect(place, source=made.photos).datasets[0]
    assert [problem.split(":")[0] for problem in facts.soundness.problems] == [
        "00000/img00000001.png", "00000/img00000002.png",
    ]  # fmt: skip
    assert any("changed since they were made" in note for note in facts.notes)
    sampled = latentmill.verify(place, sample=2)  # of 6 files, the first and the fourth
    assert not sampled.problems
    assert sampled.summary.endswith("the bytes of 2 files alone")
    stray = place / "00000/img00000099.png"
    stray.write_bytes(b"")
    assert [problem.where for problem in latentmill.verify(place, sample=2).problems] == ["00000/img00000099.png"]


def test_a_zip_shows_the_same(made: SimpleNamespace, tmp_path: Path) -> None:
    latentmill.convert(
        made.photos, tmp_path / "images.zip", resolution=f"{SIDE}x{SIDE}", transform="center-crop-dhariwal",
        max_failures="100%", num_workers=1,
    )  # fmt: skip
    facts = collect(tmp_path).datasets[0]
    assert [replace(each, captions=()) for each in facts.shown] == [
        replace(each, captions=()) for each in _of(made.facts, "images").shown
    ]
    assert facts.soundness.problems == ()


def test_fake_latents_and_what_is_no_result_are_told(made: SimpleNamespace, tmp_path: Path) -> None:
    latentmill.encode(made.data / "images", tmp_path / "fake", model_url="fake", threads=1, num_workers=1)
    facts = collect(tmp_path / "fake", sample=2, verify="none")
    assert len(facts.datasets[0].shown) == 2
    assert facts.sampled.startswith("Of large datasets some files stand for all")
    assert "2 of 6 samples are shown" in facts.sampled
    assert any("there is nothing to decode" in note for note in facts.datasets[0].notes)
    with pytest.raises(SourceError, match="no finished dataset"):
        collect(made.photos)
    with pytest.raises(ConfigError, match="sample must be 1 or more"):
        collect(made.data, sample=0)
    (tmp_path / "begun/.latentmill").mkdir(parents=True)
    assert "begun is left out: it is not finished" in " ".join(collect(tmp_path, decode=False).left_out)


def test_a_page_is_written_once_but_never_over_other_files_or_into_a_dataset(
    made: SimpleNamespace, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "report.html"
    for _ in range(2):
        facts = make_report(made.data / "images", page, sample=2)
    assert page.read_text().startswith("<!doctype html>")
    assert len(facts.datasets[0].shown) == 2
    page.write_text("mine")
    with pytest.raises(DestinationError, match="is not replaced"):
        make_report(made.data / "images", page)
    with pytest.raises(DestinationError, match="must not lie in a dataset"):
        make_report(made.data / "images", made.data / "images/report.html")


def test_positions_are_spread_and_a_timeline_stays_short() -> None:
    assert spread(5, 9) == [0, 1, 2, 3, 4]
    assert spread(1000, 3) == [0, 500, 999]
    timeline = Timeline()
    for number in range(5000):
        timeline.add(number + 1)
    assert 50 < len(timeline.points) <= 200
    assert timeline.points[-1][1] == 5000
    counts = [count for _, count in timeline.points]
    assert counts == sorted(set(counts))


def test_the_report_file_of_a_run_holds_its_timeline(made: SimpleNamespace) -> None:
    report = json.loads((made.data / "latents/latentmill-report.json").read_text())
    assert report["timeline"][-1][1] == 6


def test_the_command_tells_a_program_and_exits_by_what_it_found(made: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    place = _copy(made, tmp_path, "images") / "images"
    (place / "00000/img00000001.png").unlink()
    done = cli("report", place, "--out", tmp_path / "page.html", "--sample", 2, "--json")
    assert done.returncode == 1, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    (result,) = (event for event in events if event["event"] == "result")
    assert result["problems"] >= 1
    assert (result["datasets"], result["samples"], result["dest"]) == (1, 2, str(tmp_path / "page.html"))
    assert result["bytes"] == (tmp_path / "page.html").stat().st_size

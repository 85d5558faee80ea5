"""`import`: what the dataset holds, what is refused, and that it can be killed, rerun and changed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentmill.decoding import decode
from latentmill.errors import ConfigError, DestinationError, SourceError
from latentmill.importing import ImportResult, import_captioned
from latentmill.outcome import Event
from latentmill.sources.captioned import captioned
from support import PHOTOS, identity, kill_before_change

PICTURE = np.asarray(Image.open(PHOTOS / "shapes" / "tiny_40x30.jpg"))  # 30 rows, 40 columns


def photo(path: Path, caption: str | None = "a photo", turned: int = 1, seed: int = 0, **options: Any) -> Path:
    """A photo, with its caption beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = turned
    Image.fromarray(np.roll(PICTURE, seed)).save(path, exif=exif.tobytes() if turned != 1 else b"", **options)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def run(source: Path, dest: Path, **options: Any) -> ImportResult:
    return import_captioned(source, dest, **{"threads": 2, **options})


def rows(dest: Path) -> dict[str, dict[str, Any]]:
    return {row["path"]: row for row in json.loads((dest / "InternData" / "data_info.json").read_text())}


def files(dest: Path) -> list[str]:
    """Every file of a dataset's images."""
    images = dest / "InternImgs"
    return sorted(path.relative_to(images).as_posix() for path in images.rglob("*") if not path.is_dir())


def whole(dest: Path) -> dict[str, bytes]:
    """All that a trainer reads, and nothing that a run leaves behind."""
    data = {name: (dest / "InternImgs" / name).read_bytes() for name in files(dest)}
    assert sorted(path.name for path in dest.iterdir()) == ["InternData", "InternImgs"]
    return {**data, "data_info.json": (dest / "InternData" / "data_info.json").read_bytes()}


def rejects(dest: Path) -> dict[str, str]:
    lines = (dest / "InternData" / "latentmill-rejects.jsonl").read_text().splitlines()
    return {row["key"]: f"{row['stage']}: {row['reason']}" for row in map(json.loads, lines)}


# what is made


def test_names_and_sizes(tmp_path: Path) -> None:
    source, dest = tmp_path / "photos", tmp_path / "set"
    photo(source / "a b.JPEG", " ein Käse\n")
    photo(source / "c/d/e.v2.png", "two\nlines")
    photo(source / "grün/x.png.jpg")
    shutil.copy(source / "c/d/e.v2.png", source / "really a png.jpg")
    (source / "really a png.txt").write_text("told by content")
    result = run(source, dest)
    assert (result.listed, result.stored, result.placed, result.rejected, result.rejects) == (4, 4, 4, 0, None)
    assert files(dest) == ["a b.jpg", "c/d/e.v2.png", "grün/x_png.jpg", "really a png.png"]
    expected = {"width": 40, "height": 30, "ratio": 0.75}
    assert list(rows(dest).values()) == [
        {**expected, "path": "a b.jpg", "prompt": "ein Käse"},
        {**expected, "path": "c/d/e.v2.png", "prompt": "two\nlines"},
        {**expected, "path": "grün/x_png.jpg", "prompt": "a photo"},
        {**expected, "path": "really a png.png", "prompt": "told by content"},
    ]
    assert [row.key for row in captioned(dest).rows] == files(dest)
    assert not result.already_done


def test_folders_can_be_flattened(tmp_path: Path) -> None:
    photo(tmp_path / "photos/a/b/c.png")
    run(tmp_path / "photos", tmp_path / "set", flatten=True)
    assert files(tmp_path / "set") == list(rows(tmp_path / "set")) == ["a_b_c.png"]


def test_other_formats_become_png_with_the_pixels_of_decoding(tmp_path: Path) -> None:
    source, dest = tmp_path / "photos", tmp_path / "set"
    shutil.copytree(PHOTOS / "modes", source)
    for name in ("photo.bmp", "photo.gif", "photo.tiff", "photo.webp"):
        (source / name).rename(source / f"{Path(name).suffix[1:]}{Path(name).suffix}")
    Image.fromarray(np.dstack([PICTURE, PICTURE[..., 0]])).save(source / "clear.webp", lossless=True)
    result = run(source, dest, missing_caption="empty")
    for path in source.iterdir():
        made = next((dest / "InternImgs").glob(path.stem + ".*"))
        assert made.suffix == (".jpg" if path.suffix == ".jpg" else ".png")
        if path.suffix in (".jpg", ".png"):
            assert made.samefile(path)
        else:
            with Image.open(made) as image:
                assert (image.format, image.mode) == ("PNG", "RGB")
            assert np.array_equal(decode(made.read_bytes())[0], decode(path.read_bytes())[0])
    assert result.notes["re-encoded"] == 5
    assert result.notes["transparent"] == 1
    report = json.loads(result.report.read_text())
    assert report["images"]["transparent"] == ["clear.webp"]
    assert report["counts"] == {"listed": 9, "stored": 9, "rejected": 0}


def test_a_pixart_table_gives_all_its_captions(tmp_path: Path) -> None:
    for name in ("a", "b"):
        photo(tmp_path / f"old/InternImgs/{name}.png", None)
    table = [
        {"path": "b.png", "prompt": "x", "sharegpt4v": "y", "width": 1, "height": 1},
        {"path": "a.png", "prompt": "z", "sharegpt4v": " "},
    ]
    (tmp_path / "old/InternData").mkdir()
    (tmp_path / "old/InternData/data_info.json").write_text(json.dumps(table))
    result = run(tmp_path / "old", tmp_path / "set")
    assert result.names == ["prompt", "sharegpt4v"]
    size = {"width": 40, "height": 30, "ratio": 0.75}
    assert list(rows(tmp_path / "set").values()) == [
        {**size, "path": "b.png", "prompt": "x", "sharegpt4v": "y"},
        {**size, "path": "a.png", "prompt": "z"},
    ]
    run(tmp_path / "old", tmp_path / "set", missing_caption="empty")
    assert rows(tmp_path / "set")["a.png"]["sharegpt4v"] == ""


def test_missing_captions_and_bad_images_are_rejects(tmp_path: Path) -> None:
    source, dest = tmp_path / "photos", tmp_path / "set"
    photo(source / "good.png")
    photo(source / "none.png", None)
    photo(source / "blank.png", " \n")
    photo(source / "latin.png").with_suffix(".txt").write_bytes(b"K\xe4se")
    photo(source / "bad.png").write_text("no image")
    damaged = photo(source / "cut.webp")
    damaged.write_bytes(damaged.read_bytes()[:60])
    (source / "link.png").symlink_to("nowhere.png")
    (source / "link.txt").write_text("x")
    result = run(source, dest)
    assert list(rows(dest)) == files(dest) == ["good.png"]
    assert (result.listed, result.stored, result.rejected) == (7, 1, 6)
    found = rejects(dest)
    assert found.pop("cut.webp").startswith("decode: ")
    assert found == {
        "none.png": "list: no caption prompt",
        "blank.png": "list: caption prompt is empty",
        "latin.png": "list: caption prompt: not UTF-8 text (byte 1 of latin.txt)",
        "bad.png": "decode: not an image that can be read",
        "link.png": "read: No such file or directory",
    }
    run(source, dest, missing_caption="empty")
    assert {path: row["prompt"] for path, row in rows(dest).items()} == {
        "good.png": "a photo",
        "none.png": "",
        "blank.png": "",
    }
    assert set(rejects(dest)) == {"latin.png", "bad.png", "cut.webp", "link.png"}


def test_a_faulty_caption_beside_a_good_one_is_left_out_and_told(tmp_path: Path) -> None:
    photo(tmp_path / "a.png", None)
    (tmp_path / "x.jsonl").write_text('{"path": "a.png", "prompt": "x", "long_prompt": "y"}\n')
    photo(tmp_path / "b.png", None)
    with (tmp_path / "x.jsonl").open("a") as file:
        file.write('{"path": "b.png", "prompt": "x", "long_prompt": 5}\n')
    told: list[Event] = []
    dest = tmp_path.with_name(tmp_path.name + "-set")
    result = run(tmp_path / "x.jsonl", dest, tell=told.append)
    assert {path: row.get("long_prompt") for path, row in rows(dest).items()} == {"a.png": "y", "b.png": None}
    assert result.notes == {"faulty-caption": 1}
    assert any("1 images have a caption that cannot be read" in event.text for event in told)


def test_turned_photos_are_told_or_made_upright(tmp_path: Path) -> None:
    source, dest = tmp_path / "photos", tmp_path / "set"
    photo(source / "flat.jpg")
    turned = photo(source / "turned.jpg", turned=6)
    told: list[Event] = []
    result = run(source, dest, tell=told.append)
    assert result.notes == {"exif-rotated": 1}
    assert (rows(dest)["turned.jpg"]["width"], rows(dest)["turned.jpg"]["height"]) == (40, 30)
    assert [event.text for event in told if event.kind == "warning"] == [
        "stored turned, as EXIF says: 1 image; import with --exif apply to make them upright"
    ]
    result = run(source, dest, exif="apply")
    assert (result.placed, result.removed) == (1, 1)
    assert files(dest) == ["flat.jpg", "turned.png"]
    row = rows(dest)["turned.png"]
    assert (row["width"], row["height"], row["ratio"]) == (30, 40, 40 / 30)
    made = decode((dest / "InternImgs/turned.png").read_bytes())
    assert np.array_equal(made[0], decode(turned.read_bytes(), exif="apply")[0])
    assert made[1] == ()
    assert json.loads(result.report.read_text())["images"]["exif-rotated"] == ["turned.jpg"]


# links


def test_kinds_of_links(tmp_path: Path) -> None:
    source = photo(tmp_path / "photos/a.png")
    os.utime(source, ns=(1, 1_234_567_891))
    made = tmp_path / "set/InternImgs/a.png"
    for link in ("hard", "copy", "symlink", "hard"):  # each changes what the one before made
        assert run(tmp_path / "photos", tmp_path / "set", link=link).placed == 1
        assert made.read_bytes() == source.read_bytes()
        assert made.stat().st_mtime_ns == 1_234_567_891
        assert made.samefile(source) == (link != "copy")
        assert made.is_symlink() == (link == "symlink")
        assert run(tmp_path / "photos", tmp_path / "set", link=link).already_done
    with pytest.raises(ConfigError, match=r"link must be hard or copy or symlink. Found: 'soft'"):
        run(tmp_path / "photos", tmp_path / "set", link="soft")


def test_symbolic_links_are_absolute_and_hard_links_reach_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = photo(tmp_path / "elsewhere/a.png", None)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/b.png").symlink_to("../elsewhere/a.png")
    (tmp_path / "photos/b.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    run(Path("photos"), Path("set"), link="symlink")
    assert Path("set/InternImgs/b.png").readlink() == tmp_path / "photos/b.png"
    run(Path("photos"), Path("hard"))
    assert not Path("hard/InternImgs/b.png").is_symlink()
    assert Path("hard/InternImgs/b.png").samefile(real)


def test_where_hard_links_are_refused_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    for name in "ab":
        photo(tmp_path / f"photos/{name}.png")
    monkeypatch.setattr(os, "link", refuse)
    told: list[Event] = []
    run(tmp_path / "photos", tmp_path / "set", tell=told.append)
    assert [event.text for event in told if event.kind == "warning"] == [
        "the filesystem refuses hard links (Invalid cross-device link): images were copied"
    ]
    assert not (tmp_path / "set/InternImgs/a.png").samefile(tmp_path / "photos/a.png")
    assert run(tmp_path / "photos", tmp_path / "set").already_done


# reruns


def test_a_rerun_does_what_has_changed_and_no_more(tmp_path: Path) -> None:
    source, dest = tmp_path / "photos", tmp_path / "set"
    for name in ("edited.png", "edited.webp.webp", "same.jpg", "same/x.webp", "gone/y.webp", "captioned.png"):
        photo(source / name)
    run(source, dest, link="copy")
    before = {name: identity(dest / "InternImgs" / name) for name in files(dest)}
    table = identity(dest / "InternData/data_info.json")
    assert run(source, dest, link="copy").already_done
    assert identity(dest / "InternData/data_info.json") == table
    photo(source / "edited.png", seed=3)
    photo(source / "edited.webp.webp", seed=3)
    (source / "captioned.txt").write_text("another")
    shutil.rmtree(source / "gone")
    photo(source / "new.webp")
    result = run(source, dest, link="copy")
    assert (result.placed, result.removed, result.already_done) == (3, 1, False)
    assert rows(dest)["captioned.png"]["prompt"] == "another"
    after = {name: identity(dest / "InternImgs" / name) for name in files(dest)}
    kept = {name for name in after if after[name] == before.get(name)}
    assert kept == {"same.jpg", "same/x.png", "captioned.png"}
    assert not (dest / "InternImgs/gone").exists()
    assert run(source, tmp_path / "fresh", link="copy").stored == result.stored
    assert whole(dest) == whole(tmp_path / "fresh")


def test_an_image_edited_in_place_gets_its_new_size(tmp_path: Path) -> None:
    source = photo(tmp_path / "photos/a.png")
    run(tmp_path / "photos", tmp_path / "set")
    with source.open("r+b") as file:
        Image.fromarray(PICTURE[:10]).save(file, "PNG")
        file.truncate()
    assert run(tmp_path / "photos", tmp_path / "set").placed == 1
    assert rows(tmp_path / "set")["a.png"]["height"] == 10
    assert whole(tmp_path / "set")["a.png"] == source.read_bytes()


def test_an_image_that_was_lost_or_cut_is_made_again(tmp_path: Path) -> None:
    for name in ("a.png", "b.webp"):
        photo(tmp_path / "photos" / name)
    run(tmp_path / "photos", tmp_path / "set")
    expected = whole(tmp_path / "set")
    (tmp_path / "set/InternImgs/a.png").unlink()
    with (tmp_path / "set/InternImgs/b.png").open("r+b") as file:
        file.truncate(10)
    assert run(tmp_path / "photos", tmp_path / "set").placed == 2
    assert whole(tmp_path / "set") == expected


@pytest.mark.parametrize("link", ["hard", "copy"])
def test_killed_anywhere_it_goes_on_and_never_shows_a_false_table(tmp_path: Path, link: str) -> None:
    source, expected = tmp_path / "photos", tmp_path / "expected"
    for name in ("a.png", "b.webp", "c/d.jpg", "gone.webp"):
        photo(source / name)
    run(source, tmp_path / "first", link=link)
    photo(source / "b.webp", seed=5)
    photo(source / "e.bmp", "new")
    (source / "gone.webp").unlink()
    run(source, expected, link=link)
    dest, number = tmp_path / "set", 0
    while True:
        shutil.rmtree(dest, ignore_errors=True)
        shutil.copytree(tmp_path / "first", dest, copy_function=os.link)
        killed = kill_before_change(number, lambda: run(source, dest, link=link, threads=1))
        if (dest / "InternData/data_info.json").exists():
            found = rows(dest)
            assert found.keys() <= set(files(dest))
            if found == rows(expected):
                assert all((dest / "InternImgs" / name).read_bytes() == whole(expected)[name] for name in found)
        run(source, dest, link=link)
        assert whole(dest) == whole(expected), f"killed before change {number}"
        if not killed:
            break
        number += 1
    assert number > 10


# what is refused


def test_images_that_would_be_read_as_one_are_refused_before_any_work(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png"):
        photo(tmp_path / "photos" / name)
    with pytest.raises(SourceError, match=r"a\.jpg and a\.png \(both are read as a\.npz\)"):
        run(tmp_path / "photos", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_equal_base_names_in_folders_are_fine(tmp_path: Path) -> None:
    for name in ("a/x.png", "b/x.png"):
        photo(tmp_path / "photos" / name, name)
    run(tmp_path / "photos", tmp_path / "set")
    assert {path: row["prompt"] for path, row in rows(tmp_path / "set").items()} == {
        n: n for n in files(tmp_path / "set")
    }


def test_a_destination_of_others_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    photo(tmp_path / "photos/a.png")
    foreign = photo(tmp_path / "set/InternImgs/deep/mine.png", None)
    with pytest.raises(DestinationError, match=r"holds deep/mine\.png, which no import put there"):
        run(tmp_path / "photos", tmp_path / "set")
    assert sorted(tmp_path.glob("set/**/*")) == [foreign.parents[1], foreign.parent, foreign]
    (tmp_path / "other/InternData").mkdir(parents=True)
    (tmp_path / "other/InternData/data_info.json").write_text("[]")
    with pytest.raises(DestinationError, match="was not made by an import"):
        run(tmp_path / "photos", tmp_path / "other")
    (tmp_path / "file").touch()
    with pytest.raises(DestinationError, match="Found a file"):
        run(tmp_path / "photos", tmp_path / "file")


def test_an_edited_table_is_not_undone_unasked(tmp_path: Path) -> None:
    photo(tmp_path / "photos/a.png")
    run(tmp_path / "photos", tmp_path / "set")
    table = tmp_path / "set/InternData/data_info.json"
    text = table.read_text()
    table.write_text(text.replace("a photo", "by hand"))
    with pytest.raises(DestinationError, match="was changed since it was made"):
        run(tmp_path / "photos", tmp_path / "set")
    assert "by hand" in table.read_text()
    assert run(tmp_path / "photos", tmp_path / "set", overwrite=True).placed == 1
    assert table.read_text() == text


def test_a_damaged_log_is_refused(tmp_path: Path) -> None:
    photo(tmp_path / "photos/a.png")
    run(tmp_path / "photos", tmp_path / "set")
    log = tmp_path / "set/InternData/latentmill-import.jsonl"
    log.write_text(log.read_text().replace('"a.png"', '"../../a.png"', 1))
    with pytest.raises(DestinationError, match=r"is damaged .*leaves the dataset"):
        run(tmp_path / "photos", tmp_path / "set")


def test_source_and_destination_may_not_lie_in_each_other(tmp_path: Path) -> None:
    photo(tmp_path / "photos/a.png")
    for dest in ("photos", "photos/set"):
        with pytest.raises(DestinationError, match="must not lie in the source's folder"):
            run(tmp_path / "photos", tmp_path / dest)
    run(tmp_path / "photos", tmp_path / "set")
    with pytest.raises(DestinationError, match="lie in the destination's own"):
        run(tmp_path / "set", tmp_path / "set")


def test_progress_is_told(tmp_path: Path) -> None:
    photo(tmp_path / "photos/a.png")
    photo(tmp_path / "photos/b.png", None)
    told: list[Event] = []
    run(tmp_path / "photos", tmp_path / "set", tell=told.append)
    assert told[0] == Event("plan", "2 images; captions: prompt")
    assert told[1] == Event("progress", total=2, done=2, committed=2, rejected=1)

"""Captioned sources: every kind and its ways to be wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from latentmill.errors import ConfigError, SampleError, SourceError
from latentmill.sources.caption_names import import_name, import_names
from latentmill.sources.captioned import CaptionedImage, caption_of, captioned
from support import DATA


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2)).save(path)


def captions(*arguments: Any, **options: Any) -> dict[str, dict[str, str]]:
    return {row.key: row.captions for row in captioned(*arguments, **options).rows}


def table(path: Path, rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return path


# folders


def test_a_folder_has_its_captions_beside_its_images(tmp_path: Path) -> None:
    names = {
        "a b.png": "a b.txt",
        "c/d/e.v2.png": "c/d/e.v2.txt",
        "grün/日本.JPG": "grün/日本.txt",
        "c.d.webp": "c.d.txt",
    }
    for image, text in names.items():
        photo(tmp_path / image)
        (tmp_path / text).write_text(f" caption of {image}\n", encoding="utf-8")
    found = captioned(tmp_path)
    assert [row.key for row in found.rows] == sorted(names)
    assert {row.key: row.captions for row in found.rows} == {name: {"prompt": f"caption of {name}"} for name in names}
    assert (found.names, found.images, found.warnings) == (["prompt"], tmp_path, [])


def test_line_breaks_stay_or_part_captions(tmp_path: Path) -> None:
    photo(tmp_path / "x.png")
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfone \r\n\r\n two\r\n")
    assert captions(tmp_path) == {"x.png": {"prompt": "one \r\n\r\n two"}}
    assert captions(tmp_path, multi_line=True) == {"x.png": {"prompt": "one", "prompt_2": "two"}}
    assert captioned(tmp_path, multi_line=True).names == ["prompt", "prompt_2"]


def test_a_caption_file_that_cannot_be_read_is_a_fault_of_that_image_alone(tmp_path: Path) -> None:
    for name in "abcde":
        photo(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_bytes("Käse".encode("latin-1"))
    (tmp_path / "b.txt").mkdir()
    (tmp_path / "b.txt" / "inner.txt").write_text("x")
    os.mkfifo(tmp_path / "c.txt")
    (tmp_path / "d.txt").write_text("good")
    a, b, c, d, e = captioned(tmp_path).rows
    assert a.faults == {"prompt": "not UTF-8 text (byte 1 of a.txt)"}
    assert c.faults == {"prompt": "c.txt is not a file"}
    assert d.captions == {"prompt": "good"}
    assert (b.captions, b.faults, e.captions, e.faults) == ({}, {}, {}, {})


def test_what_matches_nothing_is_told(tmp_path: Path) -> None:
    photo(tmp_path / "x.png")
    (tmp_path / "y.txt").write_text("lost")
    assert [warning.split(":")[0] for warning in captioned(tmp_path).warnings] == [
        "no image beside 1 .txt file",
        "no image has a caption",
    ]
    (tmp_path / "x.caption").write_text("found")
    assert captions(tmp_path, caption_extension="caption") == {"x.png": {"prompt": "found"}}


def test_a_source_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        captioned(tmp_path / "gone")
    with pytest.raises(SourceError, match="holds no images"):
        captioned(tmp_path)
    (tmp_path / "x.parquet").touch()
    with pytest.raises(SourceError, match=r"folder or a table \(\.json"):
        captioned(tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match="for a table only"):
        captioned(tmp_path, path_column="file")


# tables


def test_pixarts_json(tmp_path: Path) -> None:
    """The reference's own table; `source` is no caption, and the images are beside `InternData`."""
    data = tmp_path / "InternData" / "data_info.json"
    data.parent.mkdir()
    data.write_bytes((DATA / "pixart" / "InternData" / "data_info.json").read_bytes())
    (tmp_path / "InternImgs").mkdir()
    for source in (data, tmp_path):
        found = captioned(source)
        assert found.names == ["prompt", "sharegpt4v"]
        assert found.images == tmp_path / "InternImgs"
        assert found.rows[0].key == "000000000000.png"
        assert (found.rows[0].size, found.rows[0].ratio) == ((300, 451), 300 / 451)
        assert found.rows[0].captions["prompt"] == "a ginger tabby cat looking up"
    assert captioned(data, caption_columns=["sharegpt4v"]).names == ["sharegpt4v"]
    assert captions(data, caption_columns={"long": "source"})["000000000000.png"] == {"long": "animal/chelsea.JPEG"}


def test_columns_with_no_text_are_no_captions(tmp_path: Path) -> None:
    rows = [{"path": "a.png", "prompt": "x", "caption_score": 0.5, "long_prompt": None, "text": "t", "n": 1}]
    assert captions(table(tmp_path / "x.json", rows)) == {"a.png": {"prompt": "x"}}
    assert captions(table(tmp_path / "x.jsonl", rows)) == {"a.png": {"prompt": "x", "text": "t"}}


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
def test_an_only_caption_is_the_prompt(tmp_path: Path, column: str) -> None:
    source = table(tmp_path / "x.jsonl", [{"file_name": "a.png", column: "one"}, {"file_name": "b.png"}])
    assert captions(source) == {"a.png": {"prompt": "one"}, "b.png": {}}


def test_several_captions_in_a_list_get_names(tmp_path: Path) -> None:
    source = table(tmp_path / "x.jsonl", [{"image": "a.png", "caption": ["one", "two"]}, {"image": "b.png"}])
    found = captioned(source)
    assert found.rows[0].captions == {"prompt": "one", "prompt_2": "two"}
    assert found.names == ["prompt", "prompt_2"]


def test_csv_with_quotes_breaks_and_a_mark_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(
        b'\xef\xbb\xbfpath,prompt,width,height,ratio\r\n"a, b.png","says ""hi""\r\nand more",4,2,0.5\r\n\r\n'
        + "c.png,Käse,,,\r\n".encode()
    )
    first, second = captioned(tmp_path / "x.csv").rows
    assert (first.key, first.captions) == ("a, b.png", {"prompt": 'says "hi"\r\nand more'})
    assert (first.size, first.ratio) == ((2, 4), 0.5)
    assert (second.captions, second.size, second.ratio) == ({"prompt": "Käse"}, None, None)
    (tmp_path / "x.tsv").write_text("pic\twords\na.png\tone, two\n")
    assert captions(tmp_path / "x.tsv", path_column="pic", caption_columns=["words"]) == {
        "a.png": {"words": "one, two"}
    }


def test_a_caption_that_is_no_text_is_a_fault_of_that_caption_alone(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(
        b'{"path": "a.png", "prompt": "\xe9", "sharegpt4v": "good"}\r\n\n'
        b'{"path": "b.png", "prompt": 5, "sharegpt4v": "half \\ud83d"}\n'
    )
    a, b = captioned(tmp_path / "x.jsonl").rows
    assert (a.captions, a.faults) == ({"sharegpt4v": "good"}, {"prompt": "not UTF-8 text"})
    assert (b.captions, b.faults) == ({}, {"prompt": "not a text but 5", "sharegpt4v": "not UTF-8 text"})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", '{"a": 1}', "must be a list of objects, one for an image. Found: dict"),
        ("x.json", "[{]", "is not JSON: .*column 3"),
        ("x.json", '[{"path": "a"}, 5]', "row 2: expected an object. Found: 5"),
        ("x.json", "[]", "holds no rows"),
        ("x.json", '[{"path": "a"}, {"prompt": "b"}]', "row 2: expected the path of an image in `path`. Found: null"),
        ("x.json", '[{"prompt": "b"}]', "column path or file_name .*Found the columns: prompt"),
        ("x.json", '[{"path": "\\ud83d"}]', "row 1: expected the path of an image"),
        ("x.json", '[{"path": "a", "width": 5, "height": 0}]', "positive integers. Found: width 5, height 0"),
        ("x.json", '[{"path": "a", "width": true, "height": 1}]', "positive integers"),
        ("x.json", '[{"path": "a", "width": 5}]', "positive integers. Found: width 5, height None"),
        ("x.json", '[{"path": "a", "ratio": NaN}]', "a positive number as ratio. Found: nan"),
        ("x.jsonl", '{"path": "a"}\n\n{"path": \n', "line 3: not JSON"),
        ("x.jsonl", '{"path": "a", "prompt": ["b", "c"], "prompt_2": "d"}', "line 1: .*two named prompt_2"),
        ("x.csv", "path,prompt\na,b\nc\n", "line 3: expected 2 fields, as in the header. Found: 1 fields"),
        ("x.csv", 'path,prompt\na,"b\n', "line 2: not CSV: unexpected end"),
        ("x.csv", "path,path\na,b\n", "different column names. Found: path,path"),
        ("x.csv", "path,width,height\na,5,x\n", "line 2: expected width and height as positive integers"),
        ("x.csv", "", "holds no rows"),
    ],
)
def test_a_table_of_a_wrong_shape_is_refused_with_its_place(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=message):
        captioned(tmp_path / name)


def test_a_table_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("path,prompt\na,b\n", encoding="utf-16")
    with pytest.raises(SourceError, match=r"must be UTF-8. Found: UTF-16"):
        captioned(tmp_path / "x.csv")


@pytest.mark.parametrize(
    "path", ["/etc/a.png", "../a.png", "x/../../a.png", "x/..", "..\\a.png", "C:/a.png", "a\0.png"]
)
def test_a_path_that_leaves_the_images_is_refused(tmp_path: Path, path: str) -> None:
    source = table(tmp_path / "x.json", [{"path": "good..png"}, {"path": path}])
    with pytest.raises(SourceError, match=r"stay in it, .*Found: row 2: "):
        captioned(source)


def test_an_image_twice(tmp_path: Path) -> None:
    row = {"path": "a.png", "prompt": "one"}
    found = captioned(table(tmp_path / "x.json", [row, {"path": "b.png"}, row]))
    assert [row.key for row in found.rows] == ["a.png", "b.png"]
    assert found.warnings == ["x.json names images more than once, in equal rows: a.png"]
    with pytest.raises(SourceError, match=r"lines 1 and 2 are different rows for one image, a\.png"):
        captioned(table(tmp_path / "x.jsonl", [row, {**row, "prompt": "two"}]))


def test_options_that_name_nothing_are_refused(tmp_path: Path) -> None:
    source = table(tmp_path / "x.json", [{"path": "a.png", "prompt": "one"}])
    with pytest.raises(SourceError, match=r"no column long. Found the columns: path, prompt"):
        captioned(source, caption_columns=["long"])
    with pytest.raises(SourceError, match=r"in a column file. Found the columns: path, prompt"):
        captioned(source, path_column="file")
    with pytest.raises(ConfigError, match="Found: 'width'"):
        captioned(source, caption_columns={"width": "prompt"})
    with pytest.raises(SourceError, match="is no folder"):
        captioned(source, images=tmp_path / "gone")
    (tmp_path / "pictures").mkdir()
    assert captioned(source, images=tmp_path / "pictures").images == tmp_path / "pictures"


def test_a_table_without_captions_is_told(tmp_path: Path) -> None:
    found = captioned(table(tmp_path / "x.json", [{"path": "a.png", "note": "one"}]))
    assert found.names == []
    assert found.warnings == ["x.json has no captions. Its columns are: path, note"]


# policy


def test_missing_captions_by_policy() -> None:
    row = CaptionedImage("a.png", {"prompt": " one\n", "blank": " \n"}, {"bad": "not UTF-8 text"})
    assert caption_of(row, "prompt", "reject") == "one"
    assert caption_of(row, "blank", "empty") == caption_of(row, "none", "empty") == ""
    for name, missing, reason in (
        ("blank", "reject", "caption blank is empty"),
        ("none", "reject", "no caption none"),
        ("bad", "reject", "caption bad: not UTF-8 text"),
        ("bad", "empty", "caption bad: not UTF-8 text"),
    ):
        with pytest.raises(SampleError) as refused:
            caption_of(row, name, missing)  # type: ignore[arg-type]
        assert (refused.value.stage, refused.value.reason) == ("list", reason)


# names in a dataset


def as_the_multi_scale_reader(path: str) -> str:
    """contracts of the reference's reader: the last `/` becomes `_`, then extensions are replaced wherever they are."""
    name = "_".join(path.rsplit("/", 1))
    for extension in (".png", ".jpg", ".webp", ".jpeg", ".JPEG", ".JPG"):
        name = name.replace(extension, ".npy")
    return name


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "_", ".", ".png", ".jpg", ".JPEG", ".webp", ".PNG", "/", "ü", " "]), min_size=1)
        .map("".join)
        .map(lambda text: "x" + text.replace("//", "/").rstrip("/") + ".png"),
        unique=True,
    ),
    st.booleans(),
)
def test_readers_find_one_file_for_each_image_or_it_is_refused(keys: list[str], flatten: bool) -> None:
    try:
        names = import_names(keys, flatten)
    except SourceError:
        return
    paths = [f"{name}.png" for name in names]
    read = [as_the_multi_scale_reader(path) for path in paths]
    assert len(set(read)) == len(keys)
    for path, feature in zip(paths, read, strict=True):
        assert feature.count(".npy") == 1
        assert feature.endswith(".npy")
        assert path.rpartition("/")[2].replace(".png", ".npy") == path.rpartition("/")[2][:-4] + ".npy"


def test_names_keep_what_is_harmless() -> None:
    for key, name in {
        "c/d/e.v2.png": "c/d/e.v2",
        "a b/ü.JPEG": "a b/ü",
        "x.png.jpg": "x_png",
        "in.webp.d/x.PNG": "in_webp.d/x",
        "./a//b.png": "a/b",
        "no-extension": "no-extension",
    }.items():
        assert import_name(key, flatten=False) == name
    assert import_name("a/b/c.png", flatten=True) == "a_b_c"


@pytest.mark.parametrize(
    ("keys", "flatten", "both"),
    [
        (["a.PNG", "a.png"], False, "a.PNG and a.png"),
        (["a.jpg", "b.png", "a.png"], False, "a.jpg and a.png"),
        (["a/b.png", "a_b.png"], False, "a/b.png and a_b.png"),
        (["a/b_c.png", "a/b/c.png", "a_b/c.png"], False, "a/b_c.png and a_b/c.png"),
        (["a/b.png", "a_b.png"], True, "a/b.png and a_b.png"),
        (["latentmill-empty.jpg"], False, "the features of the empty caption and latentmill-empty.jpg"),
        (["x" * 250 + "/" + "y" * 10 + ".png"], False, "over 255 bytes"),
        ([".latentmill/a.png"], False, "folder of latentmill's own"),
    ],
)
def test_names_that_cannot_stand_side_by_side_are_refused(keys: list[str], flatten: bool, both: str) -> None:
    with pytest.raises(SourceError, match=both):
        import_names(keys, flatten)

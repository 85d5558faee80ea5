"""Recipe files: every setting is found in its line, `--set` changes any, and what is no recipe is told in one line."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentmill.errors import ConfigError, LatentmillError, SourceError
from latentmill.recipe_file import Keys, RecipeFile, in_recipe_words, lines_of, read_recipe

RECIPE = '''\
# dest = "no"  [outputs.no]
dest = "out" # = x
[source]
path = "photos"
note = """
model = 1
[outputs.no]
  a"b""c"""
[ outputs . "s.d" ] # ]
kind = 'la=tents'
encoding . layers = [1,
  2, # drop = 5
  "drop = 6"]
encoding.drop = 3
more = { a = 1, "b c" = { d = "x, e = 1" }, list = [{ f = 1 }] } # g = 1
last.one = "#"
[outputs.vae]

kind = "latents"
[[others]]
x = 1
[[others]]
y = 2
'''


def test_every_setting_is_found_in_its_line() -> None:
    tomllib.loads(RECIPE)
    vae: Keys = ("outputs", "vae")
    sd: Keys = ("outputs", "s.d")
    assert lines_of(RECIPE) == {
        ("dest",): 2, ("source",): 3, ("source", "path"): 4, ("source", "note"): 5, ("outputs",): 9, sd: 9,
        (*sd, "kind"): 10, (*sd, "encoding"): 11, (*sd, "encoding", "layers"): 11, (*sd, "encoding", "drop"): 14,
        (*sd, "more"): 15, (*sd, "more", "a"): 15, (*sd, "more", "b c"): 15, (*sd, "more", "b c", "d"): 15,
        (*sd, "more", "list"): 15, (*sd, "last"): 16, (*sd, "last", "one"): 16, vae: 17, (*vae, "kind"): 19,
        ("others",): 20, ("others", "x"): 21, ("others", "y"): 23,
    }  # fmt: skip


KEY = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6)
VALUE = st.one_of(
    st.integers(-(2**40), 2**40),
    st.booleans(),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])),
    st.lists(st.text("ab=[]{}#\"'\n", max_size=8), max_size=3),
)
TABLES = st.recursive(
    st.dictionaries(KEY, VALUE, max_size=4), lambda inner: st.dictionaries(KEY, inner | VALUE, max_size=4), max_leaves=8
)


def paths_of(table: dict[str, Any], outer: Keys = ()) -> Iterator[Keys]:
    for name, value in table.items():
        yield (*outer, name)
        if isinstance(value, dict):
            yield from paths_of(value, (*outer, name))


@given(TABLES, st.booleans())
def test_the_lines_of_any_toml_are_those_of_its_keys(table: dict[str, Any], multiline: bool) -> None:
    text = tomli_w.dumps(table, multiline_strings=multiline)
    lines = lines_of(text)
    assert lines.keys() == set(paths_of(tomllib.loads(text)))
    told = text.split("\n")
    for path, number in lines.items():
        name = tomli_w.dumps({path[-1]: 0}).removesuffix(" = 0\n")
        assert name in told[number - 1]


@given(st.text(max_size=60))
def test_no_text_is_too_odd_to_look_through(text: str) -> None:
    lines_of(text)


# --set


def with_set(tmp_path: Path, text: str, *overrides: str) -> tuple[dict[str, Any], RecipeFile]:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path, overrides)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("outputs.a.n=3", {"outputs": {"a": {"n": 3}}}),
        ("outputs.a.n = -1.5", {"outputs": {"a": {"n": -1.5}}}),
        ("outputs.a.flag=true", {"outputs": {"a": {"flag": True}}}),
        ("outputs.a.list=[1, 2]", {"outputs": {"a": {"list": [1, 2]}}}),
        ('outputs.a.text="4"', {"outputs": {"a": {"text": "4"}}}),
        ("outputs.a.size=64x64", {"outputs": {"a": {"size": "64x64"}}}),
        ("outputs.a.model=owner/name", {"outputs": {"a": {"model": "owner/name"}}}),
        ("outputs.a.text=a=b # c", {"outputs": {"a": {"text": "a=b # c"}}}),
        ("outputs.a.text=", {"outputs": {"a": {"text": ""}}}),
        ("outputs.a={kind='pixels', n=1}", {"outputs": {"a": {"kind": "pixels", "n": 1}}}),
        ('outputs."flux.1".n=1', {"outputs": {"flux.1": {"n": 1}}}),
        ("dest=2024", {"dest": "2024"}),
        ("source.path=2024-01-01", {"source": {"path": "2024-01-01"}}),
        ("run.max_failures=5%", {"run": {"max_failures": "5%"}}),
    ],
)
def test_any_setting_is_given_with_the_command(tmp_path: Path, override: str, expected: dict[str, Any]) -> None:
    table, file = with_set(tmp_path, "", override)
    assert table == expected
    (path,) = file.told
    assert file.place(path) == f"--set {override}: "


def test_settings_are_set_in_order_over_the_files(tmp_path: Path) -> None:
    table, _ = with_set(
        tmp_path,
        'source = "photos"\n[outputs.a]\nn = 1\nm = 1',
        "outputs.a.n=2",
        "source.max_images=3",
        "outputs.a.n=4",
    )
    assert table == {"source": {"path": "photos", "max_images": 3}, "outputs": {"a": {"n": 4, "m": 1}}}


@pytest.mark.parametrize("override", ["dest", "=x", "a..b=1", ".a=1", "a b=1", "[a]=1", "#=1", 'a."b=1'])
def test_what_sets_nothing_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"--set must be NAME=VALUE, as outputs.sd.batch_size=16. Found: ") as refused:
        with_set(tmp_path, "", override)
    assert str(refused.value).endswith(repr(override))


@given(st.lists(st.text("ab.=\"'[]{}\\\n 1#,", max_size=9), max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_is_too_odd_to_be_set_or_refused(tmp_path: Path, overrides: list[str]) -> None:
    try:
        _, file = with_set(tmp_path, "a = 1\n[b]\na = 1", *overrides)
    except ConfigError as error:
        assert str(error).startswith("--set ")
    else:
        assert set(file.told.values()) <= set(overrides)


def test_a_value_holds_no_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--set outputs.a.n.m=1: n is a value, and holds no settings$"):
        with_set(tmp_path, "outputs.a.n = 1", "outputs.a.n.m=1")


def test_the_place_of_a_setting_is_where_it_was_told_last(tmp_path: Path) -> None:
    text = '[outputs.a]\nn = 1\n[outputs.b]\nkind = "pixels"\n'
    _, file = with_set(tmp_path, text, "outputs.b={n = 2}", "outputs.a.m=1", "outputs.c.kind=pixels")
    name = tmp_path / "recipe.toml"
    assert file.place(("outputs", "a", "n")) == f"{name}, line 2: "
    assert file.place(("outputs", "a", "m")) == "--set outputs.a.m=1: "
    assert file.place(("outputs", "a", "k")) == file.place(("outputs", "a")) == f"{name}, line 1: "
    assert file.place(("outputs", "b", "kind")) == "--set outputs.b={n = 2}: "
    assert file.place(("outputs", "c", "n")) == "--set outputs.c.kind=pixels: "
    assert file.place(("run", "device")) == f"{name}: "


# what is no recipe


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'dest = "a"\n[source\n', "recipe.toml, line 2: not TOML: Expected ']' at the end of a table declaration"),
        (b'a = 1\na = 2\n', "recipe.toml, line 2: not TOML: Cannot overwrite a value"),
        (b'a = "b', "recipe.toml: not TOML: Unterminated string (at end of document)"),
        (b"a = " + b"[" * 9999, "recipe.toml: not a recipe: tables or lists are nested too deep"),
        (b'a = "\xff"', "the recipe recipe.toml is not UTF-8 text (byte 5)"),
    ],
)  # fmt: skip
def test_what_is_no_toml_is_told_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_bytes(data)
    with pytest.raises(LatentmillError) as refused:
        read_recipe(Path("recipe.toml"))
    assert str(refused.value) == message


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "no.toml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(SourceError, match=f"the recipe {path} cannot be read: {why}"):
            read_recipe(path)


def test_what_editors_on_windows_write_is_read(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(b'\xef\xbb\xbfdest = "a"\r\n[run]\r\nthreads = 1\r\n')
    table, file = read_recipe(tmp_path / "recipe.toml")
    assert table == {"dest": "a", "run": {"threads": 1}}
    assert file.lines == {("dest",): 1, ("run",): 2, ("run", "threads"): 3}


def test_options_are_told_as_settings() -> None:
    told = "give --resolution WxH, --missing-caption empty, --model-url or --overwrite; `import --png` makes names"
    expected = "give resolution WxH, missing_caption empty, model or --overwrite; `import --png` makes names"
    assert in_recipe_words(told) == expected

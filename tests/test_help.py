"""Help as a new user meets it: pages whole and narrow enough, by task, with examples that can be typed; wrong lines."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from latentmill.cli import app
from latentmill.command import Commands
from latentmill.nearby import instead_of, result_near
from latentmill.wording import did_you_mean
from support import command, make_photos

GROUP = typer.main.get_command(app)
assert isinstance(GROUP, Commands)
NAMES = sorted(GROUP.entries)
COMMON = ("--json", "--quiet", "--log-file", "--debug", "--help")


def run(*arguments: str, columns: int = 100) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": str(columns)})


# pages


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_whole_and_fits(name: str, columns: int) -> None:
    page = run(name, "--help", columns=columns)
    assert page.exit_code == 0
    text, _, examples = page.output.partition("\n Example")
    assert max(map(len, text.splitlines())) <= columns
    assert not re.search(r"\w…", text)  # cut off
    for parameter in GROUP.commands[name].params:
        if parameter.param_type_name == "option":
            assert any(f"{each}" in text for each in parameter.opts), parameter.opts
    own = {"json"} & {parameter.name for parameter in GROUP.commands[name].params}
    assert [option for option in COMMON if option not in text and not (own and option == "--quiet")] == []
    assert re.search(rf"\n   latentmill {name}\b", examples)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_a_line_that_the_command_takes(name: str) -> None:
    examples = GROUP.entries[name].examples
    assert examples
    for example in examples:
        program, named, *arguments = shlex.split(example)
        assert program == "latentmill"
        GROUP.commands[named].make_context(named, arguments)  # raises where an option is not one
    assert examples[0].startswith(f"latentmill {name}")


def test_the_commands_are_grouped_by_task_in_the_order_of_work() -> None:
    page = run("--help").output
    panels = re.findall(r"╭─ (.+?) ─+╮", page)
    assert panels[1:3] == ["First steps", "Recipes: everything in one pass"]
    assert panels[-1] == "Models and machine"
    assert page.index(" init ") < page.index(" plan ") < page.index(" run ") < page.index(" convert ")
    assert page.index(" convert ") < page.index(" verify ") < page.index(" models ")


def test_the_list_of_commands_makes_none_of_them() -> None:
    """Else its start would take as long again."""
    code = (
        "import sys; sys.argv = ['latentmill', '--help']\n"
        "import latentmill.command as command\n"
        "def made(entry):\n    raise AssertionError(entry.name)\n"
        "command._made = made\n"
        "from latentmill.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


# mistakes


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("covert", "there is no command 'covert'. Did you mean 'convert'?"),
        ("resize x", "there is no command 'resize'. Did you mean 'convert'?"),
        ("recipe.toml", "To run a recipe: latentmill run recipe.toml"),
        ("my/photos", "latentmill init my/photos"),
        ("xyzzy", "There are: "),
        ("convert --sorce a", "convert has no option --sorce. Did you mean --source?"),
        ("convert photos out --resolution 64x64",
         "Did you mean: latentmill convert --source photos --dest out --resolution 64x64"),
        ("pixart photos", "latentmill pixart --data-info photos"),
        ("convert --source a --dest b --vae mini", "latents are made by: latentmill encode --vae …"),
        ("convert --source a --dest b --size 256", "It is called --resolution here, as --resolution 256x256"),
        ("encode --source a --dest b --fp16", "It is called --dtype here, as --dtype bfloat16"),
        ("encode --source a --output b", "It is called --dest here"),
        ("convert --source a --dest b --caption-label x", "These have it: "),
        ("convert --source a", "convert needs --dest (Folder or .zip to make). Example: latentmill convert --source"),
        ("verify", "verify needs DIR_OR_ZIP"),
        ("verify a b", "verify takes DIR_OR_ZIP and no more. Found besides: b"),
        ("convert --source a --dest b --exif aply", "must be ignore or apply. Found: 'aply'. Did you mean apply?"),
        ("encode --source a --dest b --dtype fp16", "Found: 'fp16'. Did you mean float16?"),
        ("convert --source a --dest b --num-workers many", "--num-workers must be a whole number. Found: 'many'"),
        ("bench --seconds soon", "--seconds must be a number. Found: 'soon'"),
        ("--source photos", "Options of a command come behind its name"),
        ("convert --source a --dest=", "--dest must be a path. Found: '' (is a variable of the shell not set?)"),
        ("encode --source '' --dest b", "--source must be a path. Found: ''"),
        ("audit ''", "SRC must be a path. Found: ''"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_told_what_it_should_be(line: str, said: str) -> None:
    done = run(*shlex.split(line))
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    first, hint = done.stderr.splitlines()
    assert said in first
    assert re.fullmatch(r"latentmill( \w+)? --help shows what there is", hint)
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("convert --source {photos} --dest out --resolution 256", "Found: '256'. Did you mean 256x256?"),
        (
            "convert --source {photos}s --dest out --resolution 64x64",
            "does not exist: {photos}s. Did you mean {photos}?",
        ),
        ("convert --source https://example.com/a.zip --dest out", "It is a URL, and https cannot be read: download"),
        ("convert --source {photos} --dest out --transform center-crap --resolution 8x8", "did you mean 'center-crop'"),
        ("encode --source {photos} --dest out --vae sd-vae-ft-msee", "Did you mean sd-vae-ft-mse?"),
        ("encode --source {photos} --dest out --vae mini --device gpu", "Found: 'gpu'. Did you mean cuda?"),
        ("buckets {photos} --buckets gird:64", "Found: 'gird:64'. Did you mean grid?"),
        ("verify {photos}", "holds nothing that latentmill made (no latentmill.json). Give the folder or the .zip"),
        ("decode --source {photos}ss --dest out", "Did you mean {photos}?"),
        ("pixart --data-info {photos} --dest out --text-encoder T5", "Did you mean pixart-sigma-t5, "),
        ("run {photos}", "It is a folder; to have a recipe written for photos in it: latentmill init {photos}"),
        ("run {photos}/no.toml", "To have one written: latentmill init PHOTOS"),
    ],
)
def test_a_wrong_value_is_told_what_it_should_be(tmp_path: Path, line: str, said: str) -> None:
    photos = tmp_path / "photos"
    make_photos(photos, 1)
    done = run(*line.format(photos=photos).split())
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert said.format(photos=photos) in done.stderr


def test_near_paths(tmp_path: Path) -> None:
    (tmp_path / "Photos" / "train").mkdir(parents=True)
    assert instead_of(tmp_path / "photos") == f" Did you mean {tmp_path / 'Photos'}?"
    assert instead_of(tmp_path / "foto" / "train") == f" Did you mean {tmp_path / 'Photos' / 'train'}?"
    assert instead_of(tmp_path / "Photos") == ""
    assert instead_of(tmp_path / "something else") == ""
    assert "s3 cannot be read" in instead_of(Path("s3://bucket/key"))
    (tmp_path / "latentmill.json").write_text("{}")
    assert result_near(tmp_path / "Photos") == f" Did you mean {tmp_path}?"
    assert "--dest" in result_near(tmp_path / "Photos" / "train")


def test_near_words() -> None:
    assert did_you_mean("Center_Crop", ("none", "center-crop")) == " Did you mean center-crop?"
    assert did_you_mean("bf16", ("float32", "bfloat16")) == " Did you mean bfloat16?"
    assert did_you_mean("half", ("left", "right")) == ""


def test_the_command_line_is_python_m_too() -> None:
    done = subprocess.run([sys.executable, "-m", "latentmill", "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("latentmill ")
    assert command("x")[1:3] == ["-m", "latentmill"]

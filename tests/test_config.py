"""Settings: every form that is taken, and for what is not, one line that says what was expected and what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latentmill import api
from latentmill.config import DecodeSettings, LatentSettings, PixelSettings, validated
from latentmill.config_types import FailureLimit
from latentmill.errors import ConfigError
from support import cli

PLACES = {"source": "photos", "dest": "out"}


def convert_settings(**values: Any) -> PixelSettings:
    return validated(PixelSettings, {**PLACES, **values})


def encode_settings(**values: Any) -> LatentSettings:
    return validated(LatentSettings, {**PLACES, **values})


@pytest.mark.parametrize("given", ["256x128", "256,128", (256, 128), [256, 128]])
def test_forms_of_a_resolution(given: object) -> None:
    assert convert_settings(resolution=given).resolution == (256, 128)


@pytest.mark.parametrize(
    "given",
    ["256", "256x", "x256", "0x0", "0x256", "-1x4", "256x256x3", "256X256", "a,b", "", 256, (0, 0), (-8, 8), (8,)],
)
def test_a_wrong_resolution_is_named(given: object) -> None:
    with pytest.raises(ConfigError) as refused:
        convert_settings(resolution=given)
    meant = ". Did you mean 256x256?" if str(given) == "256" else ""
    assert str(refused.value) == f"resolution must be WxH with positive integers. Found: {given!r}{meant}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"transform": "crop"},
         "transform must be 'none', 'center-crop', 'center-crop-wide' or 'center-crop-dhariwal'. Found: 'crop'"),
        ({"transform": "center-crop"}, "transform center-crop needs a resolution (--resolution WxH)"),
        ({"transform": "center-crop-dhariwal", "resolution": "256x128"},
         "transform center-crop-dhariwal needs a square resolution. Found: 256x128"),
        ({"transform": "center-crop-wide", "resolution": "72x128"},
         "transform center-crop-wide needs a width of at least the height. Found: 72x128"),
        ({"alpha": "red"}, "alpha must be 'drop', 'white' or 'black'. Found: 'red'"),
        ({"exif": "yes"}, "exif must be 'ignore' or 'apply'. Found: 'yes'"),
        ({"check": "crc"}, "check must be 'stat' or 'digest'. Found: 'crc'"),
        ({"max_images": 0}, "max-images must be greater than or equal to 1. Found: 0"),
        ({"batch_size": -1}, "batch-size must be greater than or equal to 1. Found: -1"),
        ({"num_workers": 0}, "num-workers must be greater than or equal to 1. Found: 0"),
        ({"max_pixels": 0}, "max-pixels must be greater than or equal to 1. Found: 0"),
        ({"max_failures": "some"},
         "max-failures must be a number of images, or a percentage up to 100%. Found: 'some'"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named_with_what_was_expected(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        convert_settings(**values)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"device": "gpu"},
            "device must be auto, cpu, cpu:N, mps, cuda, cuda:N or cuda:N,M. Found: 'gpu'. Did you mean cuda?",
        ),
        ({"dtype": "fp16"}, "dtype must be 'float32', 'bfloat16' or 'float16'. Found: 'fp16'. Did you mean float16?"),
        ({"pixel_range": "0,255"}, "pixel-range must be -1,1 or 0,1. Found: '0,255'"),
        ({"store": "mode"}, "store must be 'moments', 'mean' or 'sample'. Found: 'mode'"),
        (
            {"save_dtype": "bfloat16"},
            "save-dtype must be 'float32' or 'float16'. Found: 'bfloat16'. Did you mean float16?",
        ),
        ({"threads": 0}, "threads must be greater than or equal to 1. Found: 0"),
    ],
)
def test_a_wrong_setting_of_encode_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        encode_settings(**values)
    assert str(refused.value) == message


def test_an_unknown_setting_is_named_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"there is no setting resolutoin\. There are: .*resolution") as refused:
        convert_settings(resolutoin="256x256")
    assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="no setting transform"):
        validated(DecodeSettings, {**PLACES, "transform": "none"})


@pytest.mark.parametrize(("given", "ends"), [("-1,1", (-1, 1)), ("0,1", (0, 1)), ("0, 1", (0, 1)), ((0, 1), (0, 1))])
def test_forms_of_a_pixel_range(given: object, ends: tuple[float, float]) -> None:
    assert encode_settings(pixel_range=given).pixel_range == ends


def test_devices() -> None:
    for device in ("auto", "cpu", "mps", "cuda", "cuda:3"):
        assert encode_settings(device=device).device == device


@pytest.mark.parametrize(
    ("transform", "size"),
    [
        ("none", (128, 72)),
        ("center-crop", (128, 72)),
        ("center-crop-wide", (128, 128)),
    ],
)
def test_the_size_of_a_result_follows_from_the_transform(transform: str, size: tuple[int, int]) -> None:
    assert convert_settings(transform=transform, resolution="128x72").result_size == size
    assert convert_settings().result_size is None


def test_settings_are_frozen() -> None:
    settings = convert_settings(resolution="8x8")
    with pytest.raises(ValueError, match="frozen"):
        settings.resolution = (16, 16)


# how many failures are too many


@pytest.mark.parametrize(
    ("limit", "rejected", "images", "exceeded"),
    [
        ("10%", 99, 99, False),  # judged after 100 images
        ("10%", 10, 100, False),
        ("10%", 11, 100, True),
        ("10%", 101, 1000, True),
        ("0.5%", 1, 200, False),
        ("0.5%", 2, 200, True),
        ("0%", 1, 100, True),
        ("100%", 500, 500, False),
        ("3", 3, 3, False),  # a number holds from the first image on
        ("3", 4, 4, True),
        (0, 1, 1, True),
        (0, 0, 1000, False),
    ],
)
def test_failure_limits(limit: object, rejected: int, images: int, exceeded: bool) -> None:
    assert FailureLimit.parse(limit).exceeded(rejected, images) is exceeded


@pytest.mark.parametrize("limit", ["101%", "-1", "1.5", "%", "10 %", "", None, 0.1])
def test_wrong_failure_limits(limit: object) -> None:
    with pytest.raises(ConfigError, match="max-failures must be a number of images, or a percentage up to 100%"):
        convert_settings(max_failures=limit)


def test_a_failure_limit_shows_itself_as_it_was_given() -> None:
    assert str(convert_settings(max_failures="2.5%").max_failures) == "2.5%"
    assert str(convert_settings().max_failures) == "10%"


# where a person meets them


def test_wrong_settings_cost_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="positive integers"):
        api.convert(tmp_path, tmp_path / "out", resolution="256")
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_it_in_one_line(tmp_path: Path) -> None:
    failed = cli("convert", "--source", tmp_path, "--dest", tmp_path / "out", "--resolution", "256")
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert (
        failed.stderr == "error: resolution must be WxH with positive integers. Found: '256'. Did you mean 256x256?\n"
    )

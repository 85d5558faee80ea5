"""Compiled and channels-last models: nearly the same latents, the same in any order, refused where they cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import latentmill
from latentmill.bench.models import measure_encode
from latentmill.encoders.models import resolve
from latentmill.encoders.vae import VaeSpec
from latentmill.errors import ConfigError, ModelError, SettingsChangedError
from latentmill.formats.metadata import Metadata
from latentmill.records import Encoded, Sample, SampleRef
from support import TINY_VAE, make_photos
from tiny_vaes import saved_vae

PLAIN = VaeSpec(resolve(str(TINY_VAE)), "cpu", "float32", (-1.0, 1.0), "moments", 0, "float32", 1)
COMPILED = replace(PLAIN, compile=True, backend="eager")


def samples(count: int, height: int, width: int) -> list[Sample]:
    pixels = np.random.default_rng(height).integers(0, 256, (count, height, width, 3), np.uint8)
    return [Sample(SampleRef(number, "", ""), own, str(number)) for number, own in enumerate(pixels)]


def arrays(encoder: Any, batch: list[Sample]) -> np.ndarray:
    results = encoder.encode(batch)
    assert all(isinstance(result, Encoded) for result in results)
    return np.stack([result.array for result in results])


def fresh() -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()


def graphs() -> int:
    """How many were compiled since."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@torch._dynamo.config.patch(recompile_limit=2)
def test_each_shape_is_compiled_once_however_many_there_are() -> None:
    """Beyond its limit PyTorch would go on uncompiled, in silence."""
    fresh()
    encoder, plain = COMPILED.open(), PLAIN.open()
    for _ in range(2):
        for side in range(1, 5):
            batch = samples(3, 8 * side, 16)
            encoder.warm_up(batch)
            assert np.abs(arrays(encoder, batch) - arrays(plain, batch)).max() <= 1e-5
    assert graphs() == 4
    encoder.encode(samples(4, 8, 16))  # three are filled up to four
    assert graphs() == 4
    encoder.encode(samples(2, 8, 16))
    assert graphs() == 5


class Shapes:
    """A Family that keeps (N, H, W) of what is encoded."""

    def __init__(self, encoder: Any) -> None:
        self.seen: list[tuple[int, int, int]] = []
        self._family, encoder._forward._family = encoder.family, self

    def encode(self, vae: Any, batch: torch.Tensor) -> torch.Tensor:
        count, _, height, width = batch.shape
        self.seen.append((count, height, width))
        return self._family.encode(vae, batch)

    def taken(self) -> list[tuple[int, int, int]]:
        seen, self.seen = self.seen, []
        return seen


def test_a_warm_up_stays_within_memory_and_leaves_nothing_to_compile() -> None:
    """What is filled up counts as well: of 12 images five would fit, but five are computed as eight."""
    fresh()
    encoder = replace(COMPILED, seed=3).open()
    shapes, limit = Shapes(encoder), 5 * 64 * 64
    encoder._room = encoder._halving.limit = limit
    for batch, expected in (
        (samples(12, 64, 64), {(4, 64, 64)}),
        (samples(9, 64, 64), {(4, 64, 64), (1, 64, 64)}),
        (samples(3, 64, 64), {(4, 64, 64)}),
        (samples(1, 32, 1024), {(1, 32, 512)}),
    ):
        encoder.warm_up(batch)
        assert set(shapes.taken()) == expected
        encoder.warm_up(batch)
        assert not shapes.taken(), "it was warm"
        compiled = graphs()
        encoder.encode(batch)
        ran = shapes.taken()
        assert set(ran) == expected
        assert graphs() == compiled
        assert all(count * height * width <= limit for count, height, width in ran)


def test_a_warm_up_that_does_not_fit_teaches_what_does() -> None:
    fresh()
    encoder = replace(COMPILED, seed=4).open()
    shapes = Shapes(encoder)
    encoder._room = encoder._halving.limit = None
    whole = shapes._family.encode

    def encode(vae: Any, batch: torch.Tensor) -> torch.Tensor:
        if len(batch) > 2:
            raise torch.OutOfMemoryError("not enough memory")
        return whole(vae, batch)

    shapes._family = type("Small", (), {"encode": staticmethod(encode)})
    encoder.warm_up(samples(5, 16, 16))
    assert shapes.taken() == [(8, 16, 16), (4, 16, 16), (2, 16, 16), (2, 16, 16), (1, 16, 16)]
    results = encoder.encode(samples(5, 16, 16))
    assert all(isinstance(result, Encoded) and result.notes == ("smaller-batch",) for result in results)
    assert shapes.taken() == [(2, 16, 16), (2, 16, 16), (1, 16, 16)]


def test_measuring_compiles_nothing() -> None:
    fresh()
    encoder = replace(COMPILED, seed=1).open()
    encoder.trial(samples(2, 40, 24))
    assert graphs() == 0
    encoder.encode(samples(2, 40, 24))
    assert graphs() == 1


@pytest.mark.parametrize("step", ["warm_up", "encode", "bench"])
def test_what_cannot_be_compiled_is_one_clear_line(step: str) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise ValueError("no compiler is here")

    fresh()
    spec = replace(COMPILED, seed=2)
    encoder = spec.open()
    encoder.vae.encoder.compile(backend=broken, dynamic=False)
    with pytest.raises(ModelError, match=r"cannot be compiled here: leave out --compile\. .*no compiler is here"):
        if step == "bench":
            measure_encode(spec, "tiny", "cpu", 1, [np.zeros((16, 16, 3), np.uint8)], 0.1)
        else:
            getattr(encoder, step)(samples(2, 16, 16))


def test_channels_last_is_near() -> None:
    encoder = replace(PLAIN, channels_last=True).open()
    weight = encoder.vae.encoder.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    batch = samples(3, 32, 48)
    assert np.abs(arrays(encoder, batch) - arrays(PLAIN.open(), batch)).max() <= 1e-3


def test_channels_last_of_a_video_model_is_refused(tmp_path: Path) -> None:
    folder = saved_vae("wan2.2", tmp_path)
    with pytest.raises(ConfigError, match="channels-last is of models with 2D convolutions"):
        replace(PLAIN, model=resolve(str(folder)), channels_last=True).open()


def test_they_are_settings_of_a_dataset_only_where_they_are_on(tmp_path: Path) -> None:
    make_photos(photos := tmp_path / "photos", 3)
    usual = {"model_url": str(TINY_VAE), "threads": 1, "resolution": "16x16", "transform": "center-crop"}
    plain = latentmill.encode(photos, tmp_path / "latents", **usual)
    stored = Metadata.read_beside(plain.dest)
    assert stored is not None
    assert not {"channels_last", "compile"} & stored.fingerprint.keys()
    assert latentmill.encode(photos, tmp_path / "latents", **usual).already_done
    with pytest.raises(SettingsChangedError, match="channels-last: was not set, now True"):
        latentmill.encode(photos, tmp_path / "latents", **usual, channels_last=True)
    with pytest.raises(ConfigError, match="channels-last and compile are of VAEs of diffusers"):
        latentmill.encode(photos, tmp_path / "fake", **usual | {"model_url": "fake"}, compile=True)

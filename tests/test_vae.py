"""The encoder against diffusers' own AutoencoderKL: every precision, range and statistic; draws; what is not finite;
what does not fit in memory."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from latentmill import api
from latentmill.encoders import pixels as encoders_pixels
from latentmill.encoders import vae as encoders_vae
from latentmill.encoders.models import resolve
from latentmill.encoders.vae import DecoderSpec, VaeSpec, choose_device, prepare_device, to_input
from latentmill.errors import ModelError, SampleError
from latentmill.features import image_features
from latentmill.formats.metadata import index_rows
from latentmill.outcome import Result
from latentmill.records import RECOMPUTED_FLOAT32, SMALLER_BATCH, TILED, Encoded, Sample, SampleRef
from latentmill.verification import verify
from support import PHOTOS, TINY_VAE, WHOLE, cli_here

SIDE = 32
OVERFLOWS_IN_FLOAT16 = 1e5  # of a photo, not of a flat grey
OVERFLOWS_IN_FLOAT32 = 3e21  # likewise; in half precision of a flat grey too


def spec(**changes: Any) -> VaeSpec:
    tiny = VaeSpec(resolve(str(TINY_VAE)), "cpu", "float32", (-1.0, 1.0), "moments", 0, "float32", 1)
    return replace(tiny, **changes)


def sample(pixels: np.ndarray, number: int = 0, digest: str | None = None) -> Sample:
    return Sample(SampleRef(number, f"{number}.png", ""), pixels, digest or f"digest of {number}")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """uint8 NHWC: parts of real photos."""
    crops = []
    for name in ("animal/chelsea.JPEG", "person/astronaut.jpg", "plant/flower.jpg", "place/rocket.jpg"):
        image = Image.open(PHOTOS / name).convert("RGB")
        crops.append(np.asarray(image.resize((2 * SIDE, 2 * SIDE)))[:SIDE, :SIDE])
    return np.stack(crops)


@pytest.fixture(scope="module")
def samples(pixels: np.ndarray) -> list[Sample]:
    return [sample(array, number) for number, array in enumerate(pixels)]


def arrays(results: list[Encoded | SampleError]) -> np.ndarray:
    assert all(isinstance(result, Encoded) for result in results), results
    return np.stack([result.array for result in results])


def posterior(pixels: np.ndarray, dtype: torch.dtype, scale: str = "-1,1") -> Any:
    """What diffusers gives for each image by itself, as a trainer's own script would ask for it."""
    vae = AutoencoderKL.from_pretrained(TINY_VAE, torch_dtype=dtype).eval()
    x = torch.tensor(pixels.transpose(0, 3, 1, 2).copy()).float()
    x = x / 127.5 - 1 if scale == "-1,1" else x / 255
    return one_by_one(vae, x.to(dtype))


def one_by_one(vae: AutoencoderKL, x: torch.Tensor) -> DiagonalGaussianDistribution:
    with torch.no_grad():
        return DiagonalGaussianDistribution(torch.cat([vae.encode(one).latent_dist.parameters for one in x.split(1)]))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2), ("float16", 2e-3)])
def test_moments_are_those_of_diffusers(
    samples: list[Sample], pixels: np.ndarray, dtype: str, tolerance: float
) -> None:
    """Equal to 1e-6 where the model computes in float32; else to the last bits of its precision."""
    expected = posterior(pixels, getattr(torch, dtype))
    found = arrays(spec(dtype=dtype).open().encode(samples))
    assert found.shape == (4, 8, SIDE // 8, SIDE // 8)
    assert found.dtype == np.float32
    assert np.allclose(found[:, :4], expected.mean.float().numpy(), atol=tolerance)
    assert np.allclose(found[:, 4:], expected.std.float().numpy(), atol=tolerance, rtol=tolerance)
    assert found[:, 4:].min() > 0


def test_the_pixel_range_is_that_of_the_setting(samples: list[Sample], pixels: np.ndarray) -> None:
    found = arrays(spec(pixel_range=(0.0, 1.0)).open().encode(samples))
    expected = posterior(pixels, torch.float32, "0,1")
    assert np.allclose(found[:, :4], expected.mean.numpy(), atol=1e-6)
    assert not np.allclose(found, arrays(spec().open().encode(samples)), atol=1e-2)


def test_input_is_contiguous_nchw(pixels: np.ndarray) -> None:
    """A permuted view runs channels-last kernels, whose results differ by up to 4e-2 on flat pictures."""
    for pixel_range in ((-1.0, 1.0), (0.0, 1.0)):
        batch = to_input(pixels, pixel_range)
        assert batch.shape == (4, 3, SIDE, SIDE)
        assert batch.is_contiguous()
        assert not batch.is_contiguous(memory_format=torch.channels_last)
    ends = to_input(np.array([[[[0, 128, 255]]]], np.uint8), (-1.0, 1.0)).flatten()
    assert ends.tolist() == pytest.approx([-1, 128 / 127.5 - 1, 1], abs=1e-6)
    assert to_input(np.array([[[[0, 51, 255]]]], np.uint8), (0.0, 1.0)).flatten().tolist() == pytest.approx([0, 0.2, 1])


def test_the_batch_changes_a_latent_by_next_to_nothing(samples: list[Sample]) -> None:
    encoder = spec(threads=WHOLE).open()
    together = arrays(encoder.encode(samples))
    alone = np.concatenate([arrays(encoder.encode([one])) for one in samples])
    assert np.abs(together - alone).max() <= 1e-5


def test_mean_is_the_first_half_of_moments(samples: list[Sample]) -> None:
    assert np.array_equal(
        arrays(spec(store="mean").open().encode(samples)), arrays(spec().open().encode(samples))[:, :4]
    )


def test_another_default_device_changes_nothing(samples: list[Sample]) -> None:
    """As in a script that called `torch.set_default_device("cuda")`."""
    encoder = spec(store="sample").open()
    expected = arrays(encoder.encode(samples))
    with torch.device("meta"):
        assert np.array_equal(arrays(encoder.encode(samples)), expected)
        assert encoders_pixels.levels((-1.0, 1.0)).device.type == "cpu"


def test_a_sample_depends_on_seed_and_image_alone(samples: list[Sample]) -> None:
    first = arrays(spec(store="sample").open().encode(samples))
    assert first.shape == (4, 4, SIDE // 8, SIDE // 8)
    again = spec(store="sample").open()
    assert np.array_equal(arrays(again.encode(samples)), first)
    backwards = arrays(again.encode(samples[::-1]))[::-1]
    assert np.allclose(backwards, first, atol=1e-5)
    alone = arrays(again.encode([replace(samples[2], ref=SampleRef(77, "elsewhere.png", ""))]))
    assert np.allclose(alone[0], first[2], atol=1e-5)
    assert not np.allclose(arrays(spec(store="sample", seed=1).open().encode(samples)), first, atol=1e-2)
    other = arrays(again.encode([replace(samples[2], digest="other bytes")]))
    assert not np.allclose(other[0], first[2], atol=1e-2)


def test_samples_are_draws_from_the_posterior(samples: list[Sample]) -> None:
    mean, std = np.split(arrays(spec().open().encode(samples)), 2, axis=1)
    many = [replace(one, digest=f"{number} {trial}") for number, one in enumerate(samples) for trial in range(24)]
    drawn = arrays(spec(store="sample").open().encode(many)).reshape(4, 24, *mean.shape[1:])
    standard = (drawn - mean[:, None]) / std[:, None]
    assert abs(standard.mean()) < 0.05
    assert abs(standard.std() - 1) < 0.05
    assert abs(np.mean(standard**3)) < 0.2


def test_latents_can_be_kept_in_float16(samples: list[Sample]) -> None:
    full = arrays(spec().open().encode(samples))
    half = arrays(spec(save_dtype="float16").open().encode(samples))
    assert half.dtype == np.float16
    assert np.array_equal(half, full.astype(np.float16))


def test_sums_are_those_of_what_is_stored(samples: list[Sample]) -> None:
    """Per channel: mean, mean square and mean variance, from which the set's statistics are made."""
    result = spec().open().encode(samples)[0]
    mean, std = np.split(result.array.astype(np.float64), 2)
    expected = [mean.mean(axis=(1, 2)), (mean**2).mean(axis=(1, 2)), (std**2).mean(axis=(1, 2))]
    assert np.allclose(result.sums, np.concatenate(expected), rtol=1e-6)
    drawn = spec(store="sample").open().encode(samples)[0]
    assert np.allclose(drawn.sums[:4], drawn.array.mean(axis=(1, 2)), rtol=1e-5)
    assert drawn.sums[8:] == (0, 0, 0, 0)


def test_a_spec_can_be_pickled_before_and_after_it_was_opened(samples: list[Sample]) -> None:
    one = spec()
    closed = pickle.dumps(one)
    expected = arrays(one.open().encode(samples))
    opened = pickle.dumps(one)
    assert len(opened) < 10_000  # the model does not travel
    for data in (closed, opened):
        assert np.array_equal(arrays(pickle.loads(data).open().encode(samples)), expected)


# what is not finite


def fragile_vae(folder: Path, scale: float) -> Path:
    """A real AutoencoderKL with first activations `scale` times as large; its group norms undo that, if they can."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=2,
        layers_per_block=1,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        vae.encoder.conv_in.weight *= scale
        vae.encoder.conv_in.bias.zero_()
    vae.save_pretrained(folder, safe_serialization=True)
    return folder


def grey() -> np.ndarray:
    return np.full((SIDE, SIDE, 3), 127, np.uint8)


def test_what_is_not_finite_in_half_precision_is_computed_again_in_float32(tmp_path: Path, pixels: np.ndarray) -> None:
    model = resolve(str(fragile_vae(tmp_path / "vae", OVERFLOWS_IN_FLOAT16)))
    batch = [sample(pixels[0], 0), sample(grey(), 1), sample(pixels[1], 2)]
    full = spec(model=model).open().encode(batch)
    assert [result.notes for result in full] == [(), (), ()]
    half = spec(model=model, dtype="float16").open().encode(batch)
    assert [result.notes for result in half] == [(RECOMPUTED_FLOAT32,), (), (RECOMPUTED_FLOAT32,)]
    for found, expected in zip(half, full, strict=True):
        assert np.allclose(found.array, expected.array, atol=1e-5 if found.notes else 1e-2)
    own = AutoencoderKL.from_pretrained(tmp_path / "vae", torch_dtype=torch.float16)
    with torch.no_grad():
        bare = own.encode(to_input(pixels[:1], (-1.0, 1.0)).half()).latent_dist.mean
    assert not torch.isfinite(bare).all()  # so there was something to mend


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_not_finite_in_float32_is_a_reject(tmp_path: Path, pixels: np.ndarray, dtype: str) -> None:
    """One picture's failure leaves the others of its batch as they are."""
    model = resolve(str(fragile_vae(tmp_path / "vae", OVERFLOWS_IN_FLOAT32)))
    bad, good = spec(model=model, dtype=dtype).open().encode([sample(pixels[0]), sample(grey(), 1)])
    assert isinstance(bad, SampleError)
    assert bad.stage == "encode"
    assert "not finite" in bad.reason
    assert isinstance(good, Encoded)
    assert np.isfinite(good.array).all()


def test_extreme_variances_are_clamped_as_diffusers_clamps_them(tmp_path: Path, pixels: np.ndarray) -> None:
    vae = AutoencoderKL.from_pretrained(fragile_vae(tmp_path / "vae", 1)).eval()
    with torch.no_grad():
        vae.quant_conv.weight[2:] *= 1e3  # the two channels of log variance
    expected = one_by_one(vae, to_input(pixels, (-1.0, 1.0)))
    vae.save_pretrained(tmp_path / "extreme")
    found = arrays(spec(model=resolve(str(tmp_path / "extreme"))).open().encode([sample(array) for array in pixels]))
    assert expected.std.min() < 1e-6
    assert expected.std.max() > 2e4
    assert np.allclose(found[:, 2:], expected.std.numpy(), rtol=1e-4)


def test_what_does_not_fit_in_float16_is_a_reject(tmp_path: Path, pixels: np.ndarray) -> None:
    vae = AutoencoderKL.from_pretrained(fragile_vae(tmp_path / "vae", 1))
    with torch.no_grad():
        vae.quant_conv.weight *= 1e6
    vae.save_pretrained(tmp_path / "large")
    model = resolve(str(tmp_path / "large"))
    (result,) = spec(model=model, save_dtype="float16", store="mean").open().encode([sample(pixels[0])])
    assert isinstance(result, SampleError)
    assert result.reason == "the latent does not fit in float16"
    (result,) = spec(model=model, store="mean").open().encode([sample(pixels[0])])
    assert np.abs(result.array).max() > 65504


def test_recomputed_latents_are_counted(tmp_path: Path, pixels: np.ndarray) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    for number, array in enumerate([*pixels, grey()]):
        Image.fromarray(array).save(source / f"{number}.png")
    result = api.encode(
        source,
        tmp_path / "latents",
        model_url=str(fragile_vae(tmp_path / "vae", OVERFLOWS_IN_FLOAT16)),
        dtype="float16",
    )
    assert (result.stored, result.rejected) == (5, 0)
    assert result.notes == {RECOMPUTED_FLOAT32: 4}
    report = json.loads(result.report.read_text())
    assert report["images"][RECOMPUTED_FLOAT32] == ["0.png", "1.png", "2.png", "3.png"]


def test_an_image_whose_latent_is_rejected_is_not_published(tmp_path: Path, pixels: np.ndarray) -> None:
    source, latents, images = tmp_path / "photos", tmp_path / "vae-sd", tmp_path / "images"
    for name, array in (("a/0.png", grey()), ("a/1.png", pixels[0]), ("b/2.png", grey() + 1)):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(source / name)
    done = cli_here(
        *("encode", "--source", source, "--dest", latents, "--images", images, "--max-failures", 1),
        *("--vae", fragile_vae(tmp_path / "vae", OVERFLOWS_IN_FLOAT32), "--dtype", "bfloat16"),
    )
    assert done.returncode == 3, done.stderr
    assert "1 rejected" in done.stdout
    (reject,) = [json.loads(line) for line in (latents / "latentmill-rejects.jsonl").read_text().splitlines()]
    assert (reject["key"], reject["stage"]) == ("a/1.png", "encode")
    stored = [0, 2]
    assert sorted(path.name for path in images.rglob("*.png")) == [f"img{n:08d}.png" for n in stored]
    assert sorted(path.name for path in latents.rglob("*.npy")) == [f"img-mean-std-{n:08d}.npy" for n in stored]
    for folder in (images, latents):
        assert [label for _, label in json.loads((folder / "dataset.json").read_text())["labels"]] == [0, 1]
    assert not verify(latents, images).problems


# whole data sets


@pytest.mark.parametrize(
    ("settings", "name", "shape", "dtype"),
    [
        ({"store": "mean"}, "img-mean-{:08d}.npy", (4, 8, 8), np.float32),
        ({"store": "sample", "seed": 5}, "img-sample-{:08d}.npy", (4, 8, 8), np.float32),
        ({"save_dtype": "float16", "pixel_range": "0,1"}, "img-mean-std-{:08d}.npy", (8, 8, 8), np.float16),
    ],
)
def test_what_is_stored_is_named_and_described(
    photos: Path, tmp_path: Path, settings: dict[str, Any], name: str, shape: tuple[int, ...], dtype: type
) -> None:
    latents = tmp_path / "latents"
    crop = {"transform": "center-crop", "resolution": "64x64"}
    result = api.encode(photos, latents, model_url=str(TINY_VAE), **crop, **settings)
    assert result.stored == 12
    assert sorted(path.name for path in latents.rglob("*.npy")) == [name.format(number) for number in range(12)]
    stored = np.stack([np.load(path) for path in sorted(latents.rglob("*.npy"))])
    assert stored.shape == (12, *shape)
    assert stored.dtype == dtype
    metadata = json.loads((latents / "latentmill.json").read_text())
    assert metadata["latent"]["shape"] == list(shape)
    assert metadata["latent"]["dtype"] == np.dtype(dtype).name
    assert metadata["latent"]["statistic"] == settings.get("store", "moments")
    assert metadata["latent"]["scaled"] is False
    assert metadata["latent"]["pixel_range"] == ([0, 1] if "pixel_range" in settings else [-1, 1])
    assert metadata["model"]["scaling_factor"] == 0.13025
    kept = stored[:, :4].astype(np.float64)
    tolerance = 1e-3 if dtype == np.float16 else 1e-6
    assert np.allclose(metadata["statistics"]["mean"], kept.mean(axis=(0, 2, 3)), atol=tolerance)
    assert np.allclose(metadata["statistics"]["std"], kept.std(axis=(0, 2, 3)), atol=tolerance)
    if shape[0] == 8:
        variance = (stored[:, 4:].astype(np.float64) ** 2).mean(axis=(0, 2, 3))
        spread = np.sqrt(kept.var(axis=(0, 2, 3)) + variance)
        assert np.allclose(metadata["statistics"]["std_sampled"], spread, atol=tolerance)
    else:
        assert metadata["statistics"]["std_sampled"] == metadata["statistics"]["std"]
    assert not verify(latents).problems


def test_samples_do_not_change_with_the_batch(photos: Path, tmp_path: Path) -> None:
    crop = {"transform": "center-crop", "resolution": "32x32", "store": "sample", "model_url": str(TINY_VAE)}
    found = []
    for name, settings in (("one", {"batch_size": 12}), ("two", {"batch_size": 5}), ("other", {"seed": 9})):
        api.encode(photos, tmp_path / name, **crop, **settings)
        found.append(np.stack([np.load(path) for path in sorted((tmp_path / name).rglob("*.npy"))]))
    assert np.allclose(found[0], found[1], atol=1e-5)
    assert not np.allclose(found[0], found[2], atol=1e-2)


def test_the_same_plan_gives_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    """Whatever the loading threads; the threads of a forward are part of the plan."""
    settings = {"transform": "center-crop", "resolution": "64x64", "model_url": str(TINY_VAE), "threads": 2}
    for name, workers in (("one", 1), ("two", 3)):
        api.encode(photos, tmp_path / name, num_workers=workers, **settings)
    for path in sorted((tmp_path / "one").rglob("*")):
        if path.is_file() and path.name != "latentmill-report.json":
            assert (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes() == path.read_bytes(), path
    assert json.loads((tmp_path / "one" / "latentmill.json").read_text())["fingerprint"]["threads"] == 2


def test_latents_decode_back_to_pictures(photos: Path, tmp_path: Path, samples: list[Sample]) -> None:
    crop = {"transform": "center-crop", "resolution": "64x64"}
    api.encode(photos, tmp_path / "latents", model_url=str(TINY_VAE), **crop)
    result = api.decode(tmp_path / "latents", tmp_path / "decoded", max_images=3)
    assert result.stored == 3
    names = sorted(path.relative_to(tmp_path / "decoded").as_posix() for path in (tmp_path / "decoded").rglob("*.png"))
    assert names == [f"00000/img{number:08d}.png" for number in range(3)]
    vae = AutoencoderKL.from_pretrained(TINY_VAE).eval()
    moments = np.stack([np.load(path) for path in sorted((tmp_path / "latents").rglob("*.npy"))[:3]])
    with torch.no_grad():
        expected = vae.decode(torch.from_numpy(moments[:, :4])).sample
    for name, picture in zip(names, expected, strict=True):
        found = np.asarray(Image.open(tmp_path / "decoded" / name)).transpose(2, 0, 1).astype(float)
        assert np.abs(found - ((picture + 1) * 127.5).clamp(0, 255).numpy()).max() <= 0.51
    assert [row["label"] for row in index_rows(tmp_path / "decoded")] == [0, 0, 0]


def test_a_decoder_takes_the_pixel_range_back(samples: list[Sample]) -> None:
    means = arrays(spec(store="mean", pixel_range=(0.0, 1.0)).open().encode(samples))
    latents = [sample(array, number) for number, array in enumerate(means)]
    found = arrays(DecoderSpec(spec(pixel_range=(0.0, 1.0))).open().encode(latents))
    vae = AutoencoderKL.from_pretrained(TINY_VAE).eval()
    with torch.no_grad():
        expected = (vae.decode(torch.from_numpy(means)).sample * 255).clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert found.dtype == np.uint8
    assert np.abs(found - expected).max() <= 0.51


# devices


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match="device cuda is not there"):
        prepare_device("cuda", 1)
    with pytest.raises(ModelError, match="device mps is not there"):
        prepare_device("mps", 1)
    assert choose_device("auto") == "cpu"


def test_threads_of_a_forward_are_the_settings() -> None:
    before = torch.get_num_threads()
    try:
        prepare_device("cpu", 1)
        assert torch.get_num_threads() == 1
        prepare_device("cpu", 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# memory


class Crowded:
    """Makes a model's encoder run out of memory above so many pixels a forward; `seen` are the pixels that it got."""

    def __init__(self, vae: AutoencoderKL, most: int, unfit: Callable[[torch.Tensor], bool] = lambda x: False) -> None:
        self.most, self.seen, self.unfit = most, [], unfit
        self._forward, vae.encoder.forward = vae.encoder.forward, self.forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.shape[0] * x.shape[2] * x.shape[3])
        if self.seen[-1] > self.most or self.unfit(x):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
        return self._forward(x)


ONE = SIDE * SIDE  # pixels of a small sample
TILE = 512 * 512


@pytest.fixture(scope="module")
def large() -> Sample:
    """Larger than a tile, either way; a real photo."""
    image = Image.open(PHOTOS / "person" / "astronaut.jpg").convert("RGB").resize((576, 640))
    return sample(np.asarray(image), 9)


@pytest.fixture(scope="module")
def whole(large: Sample) -> np.ndarray:
    (result,) = spec(threads=WHOLE).open().encode([large])
    return result.array


def test_a_batch_that_does_not_fit_is_halved_and_later_ones_begin_there(samples: list[Sample]) -> None:
    expected = arrays(spec().open().encode(samples))
    encoder = spec(threads=WHOLE).open()
    crowded = Crowded(encoder.vae, 2 * ONE)
    for turn in range(2):
        found = encoder.encode(samples)
        assert np.abs(arrays(found) - expected).max() <= 1e-5
        assert [result.notes for result in found] == [(SMALLER_BATCH,)] * 4
        assert crowded.seen == [4 * ONE, *[2 * ONE] * 2 * (turn + 1)]
    assert [result.notes for result in encoder.encode(samples[:2])] == [(), ()]  # a batch that was planned so


def test_an_error_that_is_not_of_memory_comes_out(samples: list[Sample]) -> None:
    encoder = spec().open()
    encoder.vae.encoder.forward = lambda x: torch.zeros(2) @ torch.zeros(3)
    with pytest.raises(RuntimeError, match="size"):
        encoder.encode(samples)


@pytest.mark.filterwarnings("error")  # one of PyTorch's would stand in the middle of the progress
def test_an_image_that_does_not_fit_is_tiled_and_the_model_is_then_as_before(large: Sample, whole: np.ndarray) -> None:
    """Group norms see a tile alone, so the means differ by 0.07 of their deviation (these weights are random)."""
    encoder = spec(threads=WHOLE).open()
    crowded = Crowded(encoder.vae, TILE)
    (tiled,) = encoder.encode([large])
    assert tiled.notes == (TILED,)
    assert tiled.array.shape == whole.shape
    assert crowded.seen[0] == 576 * 640
    assert max(crowded.seen[1:]) == TILE
    mean, expected = tiled.array[:4], whole[:4]
    assert 0 < np.abs(mean - expected).mean() < 0.1 * expected.std()
    assert np.abs(tiled.array[4:] / whole[4:] - 1).mean() < 0.03
    crowded.most = 10 * TILE
    (again,) = encoder.encode([large])
    assert again.notes == ()
    assert np.array_equal(again.array, whole)


def test_tiling_always_leaves_small_images_whole(large: Sample, samples: list[Sample]) -> None:
    encoder = spec(tiling="always").open()
    crowded = Crowded(encoder.vae, TILE)
    assert [result.notes for result in encoder.encode([large])] == [(TILED,)]
    small = encoder.encode(samples[:2])
    assert [result.notes for result in small] == [(), ()]
    assert np.allclose(arrays(small), arrays(spec().open().encode(samples[:2])), atol=1e-5)
    assert crowded.seen[-2:] == [ONE, ONE]


@pytest.mark.parametrize("tiling", ["auto", "always", "never"])
def test_one_image_that_fits_nowhere_is_a_reject_of_its_own(pixels: np.ndarray, tiling: str) -> None:
    encoder = spec(tiling=tiling).open()
    Crowded(encoder.vae, 2 * ONE, unfit=lambda x: bool((x[-1] == 1).all()))
    white = sample(np.full((SIDE, SIDE, 3), 255, np.uint8), 1)
    first, bad, last = encoder.encode([sample(pixels[0], 0), white, sample(pixels[1], 2)])
    assert isinstance(bad, SampleError)
    assert bad.stage == "memory"
    assert bad.reason.startswith("32x32 pixels do not fit in the device's memory")
    assert ("--tiling auto" in bad.reason) == (tiling == "never")
    assert np.allclose(
        arrays([first, last]), arrays(spec().open().encode([sample(pixels[0]), sample(pixels[1])])), atol=1e-5
    )


@pytest.mark.parametrize("tiling", ["auto", "never"])
def test_where_no_image_fits_the_job_ends_at_once(samples: list[Sample], tiling: str) -> None:
    encoder = spec(tiling=tiling).open()
    Crowded(encoder.vae, ONE - 1)
    with pytest.raises(
        ModelError, match=r"not even one image fits: 32x32 pixels .* --device cpu. Found: CUDA out of memory"
    ):
        encoder.encode(samples)


def test_where_the_model_has_no_room_in_float32_what_overflowed_is_a_reject(
    tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = resolve(str(fragile_vae(tmp_path / "vae", OVERFLOWS_IN_FLOAT16)))
    encoder = spec(model=model, dtype="float16").open()
    tries: list[object] = []

    def full(*arguments: object, **named: object) -> None:
        tries.append(arguments)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")

    monkeypatch.setattr(AutoencoderKL, "to", full)
    for _ in range(2):
        bad, fine, last = encoder.encode([sample(pixels[0], 0), sample(grey(), 1), sample(pixels[1], 2)])
        assert isinstance(fine, Encoded)
        for each in (bad, last):
            assert isinstance(each, SampleError)
            assert str(each).startswith("memory: the result is not finite in half precision, and the model in float32")
    assert len(tries) == 1


def test_a_job_goes_on_where_the_model_has_no_room_in_float32(
    tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, to, tries = tmp_path / "photos", AutoencoderKL.to, []
    source.mkdir()
    for number, array in enumerate([pixels[0], grey(), pixels[1], grey() + 1]):
        Image.fromarray(array).save(source / f"{number}.png")

    def crowded(vae: AutoencoderKL, *arguments: Any, **named: Any) -> AutoencoderKL:
        if vae.dtype == torch.float32:
            tries.append(arguments)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
        return to(vae, *arguments, **named)

    monkeypatch.setattr(AutoencoderKL, "to", crowded)
    vae = str(fragile_vae(tmp_path / "vae", OVERFLOWS_IN_FLOAT16))
    result = api.encode(source, tmp_path / "latents", model_url=vae, dtype="float16", batch_size=1, max_failures=2)
    assert (result.stored, result.rejected) == (2, 2)
    rejects = [json.loads(line) for line in result.rejects.read_text().splitlines()]
    assert [(reject["key"], reject["stage"]) for reject in rejects] == [("0.png", "memory"), ("2.png", "memory")]
    assert len(tries) == 1
    assert not verify(result.dest).problems


def test_latents_that_do_not_fit_are_decoded_in_smaller_batches(samples: list[Sample]) -> None:
    latents = [sample(result.array, number) for number, result in enumerate(spec(store="mean").open().encode(samples))]
    expected = arrays(DecoderSpec(spec()).open().encode(latents)).astype(int)
    decoder = DecoderSpec(spec()).open()
    forward, seen, most = decoder.vae.decoder.forward, [], 2

    def crowded(z: torch.Tensor, *more: object) -> torch.Tensor:
        seen.append(len(z))
        if len(z) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
        return forward(z, *more)

    decoder.vae.decoder.forward = crowded
    found = decoder.encode(latents)
    assert seen == [4, 2, 2]
    assert [result.notes for result in found] == [(SMALLER_BATCH,)] * 4
    assert np.abs(arrays(found) - expected).max() <= 1
    most = 0
    with pytest.raises(ModelError, match=r"not even one latent fits .*Found: CUDA out of memory"):
        decoder.encode(latents)


def memory_for(images: float) -> int:
    """Bytes of which a share of 0.8 holds so many small samples: 5 tensors of 16 channels in float32."""
    return int(images * ONE * 5 * 16 * 4 / 0.8)


def test_on_a_cpu_batches_and_images_are_cut_to_the_available_memory_before_they_are_tried(
    samples: list[Sample], large: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system that is out of memory does not raise: it kills."""
    monkeypatch.setattr("latentmill.encoders.vae.available_memory", lambda: memory_for(2.5))
    encoder = spec(threads=WHOLE).open()
    crowded = Crowded(encoder.vae, 10 * TILE)
    found = encoder.encode(samples)
    assert crowded.seen == [2 * ONE, 2 * ONE]
    assert [result.notes for result in found] == [(SMALLER_BATCH,)] * 4
    assert np.allclose(arrays(found), arrays(spec().open().encode(samples)), atol=1e-5)
    assert [result.notes for result in encoder.encode([large])] == [(TILED,)]
    assert max(crowded.seen) == TILE
    (result,) = spec(tiling="never").open().encode([samples[0]])
    assert result.notes == ()
    monkeypatch.setattr("latentmill.encoders.vae.available_memory", lambda: memory_for(0.5))
    with pytest.raises(ModelError, match=r"use --tiling auto, .*\. Found: no room for it"):
        spec(tiling="never").open().encode([samples[0]])


# buckets


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of three shapes and two greys, one of them white."""
    folder = tmp_path_factory.mktemp("shapes")
    for number, name in enumerate(("animal/chelsea.JPEG", "person/grace_hopper.jpg", "plant/flower.jpg")):
        image = Image.open(PHOTOS / name).convert("RGB")
        for turn in range(3):
            image.resize(((64, 96), (64, 64), (96, 64))[turn]).save(folder / f"{number}{turn}.png")
    Image.fromarray(grey()).save(folder / "grey.png")
    Image.new("RGB", (64, 64), "white").save(folder / "white.png")
    return folder


def features(source: Path, dest: Path, **settings: Any) -> Result:
    small = {"resolution": 64, "multi_scale": True, "buckets": "grid:16", "threads": 1}
    return image_features(source, dest, **{**small, "vae": str(TINY_VAE), **settings})


def latents(result: Result) -> dict[str, np.ndarray]:
    return {row["key"]: np.load(result.dest / row["name"]) for row in index_rows(result.dest) if "name" in row}


def test_smaller_batches_and_what_fits_nowhere_are_told_and_the_run_goes_on(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy = features(shapes, tmp_path / "roomy")
    assert (roomy.stored, roomy.notes) == (11, {})
    load = encoders_vae.load_vae

    def crowded(*arguments: Any) -> AutoencoderKL:
        vae = load(*arguments)
        Crowded(vae, 2 * 64 * 64, unfit=lambda x: bool((x == 1).flatten(1).all(1).any()))
        return vae

    monkeypatch.setattr(encoders_vae, "load_vae", crowded)
    result = features(shapes, tmp_path / "crowded", threads=WHOLE)
    assert (result.stored, result.rejected) == (10, 1)
    (reject,) = [json.loads(line) for line in result.rejects.read_text().splitlines()]
    assert (reject["key"], reject["stage"]) == ("white.png", "memory")
    assert result.notes[SMALLER_BATCH] == len(json.loads(result.report.read_text())["images"][SMALLER_BATCH]) > 4
    expected = latents(roomy)
    for key, found in latents(result).items():
        assert np.abs(found - expected[key]).max() <= 1e-5
    assert not verify(result.dest).problems


def test_overflow_in_float16_is_mended_in_every_bucket(shapes: Path, tmp_path: Path) -> None:
    vae = str(fragile_vae(tmp_path / "vae", OVERFLOWS_IN_FLOAT16))
    full = features(shapes, tmp_path / "full", vae=vae)
    half = features(shapes, tmp_path / "half", vae=vae, dtype="float16")
    assert half.stored == 11
    mended = json.loads(half.report.read_text())["images"][RECOMPUTED_FLOAT32]
    assert half.notes == {RECOMPUTED_FLOAT32: len(mended)}
    assert "grey.png" not in mended
    assert {f"{number}{turn}.png" for number in range(3) for turn in range(3)} <= set(mended)
    expected = latents(full)
    for key, found in latents(half).items():
        assert np.allclose(found, expected[key], atol=1e-5 if key in mended else 1e-2)


def test_a_note_is_told_once_though_both_precisions_were_tiled(tmp_path: Path, large: Sample) -> None:
    model = resolve(str(fragile_vae(tmp_path / "vae", OVERFLOWS_IN_FLOAT16)))
    strip = sample(large.array[:, :64])
    (result,) = spec(model=model, dtype="float16", tiling="always").open().encode([strip])
    assert result.notes == (TILED, RECOMPUTED_FLOAT32)

"""Streamed transfers: nothing is read before it was copied, and results are those of direct ones, byte for byte.

A GPU is played by a device whose copies lie undone in their streams until something waits for them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from latentmill.encoders.models import resolve
from latentmill.encoders.pixels import levels, looked_up, to_input
from latentmill.encoders.transfer import Cuda, Direct, Streamed
from latentmill.encoders.vae import VaeEncoder, VaeSpec
from latentmill.errors import ModelError
from latentmill.records import Encoded, Sample, SampleRef
from support import TINY_VAE


class Stream:
    """Copies that were queued, in order; `fault` comes out when they are waited for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.queued: list[Callable[[], None]] = []
        self.fault = ""

    def run(self) -> None:
        while self.queued:
            with torch.inference_mode():
                self.queued.pop(0)()
        if self.fault:
            raise RuntimeError(self.fault)


class Event:
    def __init__(self, stream: Stream) -> None:
        self.synchronize = stream.run


class Lazy(Cuda):
    """Of `latentmill.encoders.transfer.Cuda`: forwards run at once, copies when they are waited for, and not before."""

    def __init__(self) -> None:
        self.up, self.down, self.forwards = Stream("up"), Stream("down"), Stream("forwards")
        self._new = [self.up, self.down]
        self.done: list[tuple[str, ...]] = []

    def stream(self) -> Stream:
        return self._new.pop(0)

    def current(self) -> Stream:
        return self.forwards

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        host = torch.empty(tuple(shape), dtype=dtype)
        return host.fill_(torch.nan if dtype.is_floating_point else 255)

    def to_device(self, host: torch.Tensor, stream: Stream) -> torch.Tensor:
        tensor = self.pinned(host.shape, host.dtype)
        stream.queued.append(lambda: tensor.copy_(host))
        return tensor

    def to_host(self, host: torch.Tensor, tensor: torch.Tensor, stream: Stream) -> None:
        assert ("wait", stream.name, "forwards") in self.done  # else it would copy what is not computed yet
        stream.queued.append(lambda: host.copy_(tensor))

    def wait(self, stream: Stream, other: Stream) -> None:
        self.done.append(("wait", stream.name, other.name))
        other.run()

    def hold(self, tensor: torch.Tensor, stream: Stream) -> None:
        self.done.append(("hold", stream.name))

    def event(self, stream: Stream) -> Event:
        return Event(stream)


@pytest.fixture
def samples() -> list[Sample]:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 48, 3), np.uint8)
    return [Sample(SampleRef(number, "", ""), own, str(number)) for number, own in enumerate(pixels)]


def encoder(transfer: Any, **settings: Any) -> VaeEncoder:
    usual = {"dtype": "float32", "pixel_range": (-1.0, 1.0), "store": "moments", "seed": 0, "save_dtype": "float32"}
    return VaeEncoder(VaeSpec(resolve(str(TINY_VAE)), "cpu", threads=1, **{**usual, **settings}), transfer)


def bytes_of(results: Sequence[Any]) -> list[bytes]:
    assert all(isinstance(result, Encoded) for result in results)
    return [result.array.tobytes() + repr((result.notes, result.sums)).encode() for result in results]


@pytest.mark.parametrize("settings", [{}, {"dtype": "bfloat16"}, {"pixel_range": (0.0, 1.0), "store": "sample"}])
def test_streamed_results_are_the_direct_ones(samples: list[Sample], settings: dict[str, Any]) -> None:
    direct, streamed = encoder(Direct(torch.device("cpu")), **settings), encoder(Streamed(Lazy()), **settings)
    forward = streamed._forward
    forward._levels = levels(streamed.spec.pixel_range).to(forward.vae.dtype)  # as on a GPU: looked up there
    first, second = streamed.submit(samples[:4]), streamed.submit(samples[4:])
    assert bytes_of(first()) == bytes_of(direct.encode(samples[:4]))
    assert bytes_of(second()) == bytes_of(direct.encode(samples[4:]))


def test_results_wait_for_their_copy_and_memory_for_its_readers(samples: list[Sample]) -> None:
    lazy = Lazy()
    transfer = Streamed(lazy)
    tensor = transfer.upload([sample.array for sample in samples])
    assert np.array_equal(tensor.numpy(), np.stack([sample.array for sample in samples]))
    wait = transfer.download(tensor.float())
    assert lazy.down.queued  # nothing was waited for yet
    assert np.array_equal(wait(), tensor.float().numpy())
    assert np.array_equal(wait(), tensor.float().numpy())
    up, down = [("wait", "forwards", "up"), ("hold", "forwards")], [("wait", "down", "forwards"), ("hold", "down")]
    assert lazy.done == up + down


def test_a_failure_that_a_gpu_tells_late_is_one_clear_line(samples: list[Sample]) -> None:
    lazy = Lazy()
    end = encoder(Streamed(lazy)).submit(samples)
    lazy.down.fault = "CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA"
    with pytest.raises(ModelError, match=r"^the GPU failed \(CUDA error: .* encountered\)\. Run the same") as found:
        end()
    assert "\n" not in str(found.value)


def test_results_can_be_ended_in_another_thread_while_a_batch_is_begun(samples: list[Sample]) -> None:
    """In half precision with an overflow, so that the ending thread computes too."""
    one, other = encoder(None, dtype="float16"), encoder(None, dtype="float16")
    for each in (one, other):
        each.vae.encoder.conv_in.weight.mul_(1e9)  # infinite in float16
    expected = bytes_of(one.encode(samples[:3])) + bytes_of(one.encode(samples[3:]))
    found: list[Any] = []
    ends = [other.submit(samples[:3])]
    ending = threading.Thread(target=lambda: found.extend(ends[0]()))
    ending.start()
    ends.append(other.submit(samples[3:]))
    ending.join()
    found += ends[1]()
    assert all("recomputed-float32" in result.notes for result in found)
    assert bytes_of(found) == expected


@pytest.mark.parametrize("pixel_range", [(-1.0, 1.0), (0.0, 1.0)])
def test_looking_up_gives_the_bits_of_the_arithmetic(pixel_range: tuple[float, float]) -> None:
    pixels = np.arange(3 * 256, dtype=np.uint8).reshape(2, 16, 8, 3)
    plain = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float()
    expected = plain / 127.5 - 1 if pixel_range == (-1.0, 1.0) else plain / 255
    assert torch.equal(to_input(pixels, pixel_range), expected)
    assert torch.equal(looked_up(levels(pixel_range), torch.from_numpy(pixels)), expected)

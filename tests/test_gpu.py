"""What only a GPU brings about, played on a CPU: its precision, which GPU is whose, memory that is short."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from latentmill.devices import each_device
from latentmill.encoders import device
from latentmill.encoders.compiling import compile_module
from latentmill.encoders.device import prepare_device, restore_torch
from latentmill.encoders.memory import DeviceFullError, Halving, is_out_of_memory
from latentmill.encoders.models import resolve
from latentmill.encoders.pretrained import load_errors
from latentmill.encoders.text import TextSpec
from latentmill.encoders.text_models import resolve_text
from latentmill.encoders.vae_model import load_vae
from latentmill.encoders.vision_input import _constants
from latentmill.errors import ModelError
from latentmill.records import Sample, SampleRef
from latentmill.runners import local
from latentmill.usage import GpuUse, _gpus
from latentmill.worker import Task
from support import DATA, TINY_VAE

# precision

BEGUN = {
    "as PyTorch begins": "",
    "all in TF32": "torch.backends.fp32_precision = 'tf32'",
    "products in TF32, convolutions exact": (
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'; torch.backends.cudnn.conv.fp32_precision = 'ieee'"
    ),
    "all in TF32, products exact": (
        "torch.backends.fp32_precision = 'tf32'; torch.backends.cuda.matmul.fp32_precision = 'ieee'"
    ),
    "medium": "torch.set_float32_matmul_precision('medium')",
    "high, and cuDNN by trial": "torch.set_float32_matmul_precision('high'); torch.backends.cudnn.benchmark = True",
}
SCRIPT = """
import torch
from latentmill.encoders.device import prepare_device, restore_torch
exec({begin!r})
b = torch.backends
places = b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv
def state():
    try:
        word = torch.get_float32_matmul_precision()
    except RuntimeError:
        word = None
    return word, b.cudnn.benchmark, b.cudnn.deterministic, torch.get_num_threads(), [p.fp32_precision for p in places]
before = state()
prepare_device("cpu", 1)
prepare_device("cpu", 2)
assert state() == ("highest", False, True, 2, ["ieee"] * 5), state()
restore_torch()
assert state() == before, (before, state())
"""


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="of PyTorch 2.9 and later")
def test_float32_is_exact_whatever_the_caller_has_set_and_all_is_given_back() -> None:
    """In processes of their own: these are settings of a whole process."""
    runs = {
        name: subprocess.Popen(
            [sys.executable, "-W", "error", "-c", SCRIPT.format(begin=begin)], stderr=subprocess.PIPE, text=True
        )
        for name, begin in BEGUN.items()
    }
    for name, run in runs.items():
        assert run.communicate(timeout=120)[1] == "", name
        assert run.returncode == 0


def test_an_older_pytorch_has_one_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> list[Any]:
        raise AttributeError("fp32_precision")

    monkeypatch.setattr(device, "_places", none)
    monkeypatch.setattr(torch.backends, "cudnn", SimpleNamespace(allow_tf32=True, benchmark=True, deterministic=False))
    prepare_device("cpu", 1)
    assert not torch.backends.cudnn.allow_tf32
    restore_torch()
    assert torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.benchmark


# whose GPU


def shown(monkeypatch: pytest.MonkeyPatch, *devices: str) -> list[str]:
    """The GPU that each process is told to see alone."""
    told: list[str] = []

    class Process:
        def __init__(self, target: object, args: tuple[Any, ...]) -> None:
            told.append(args[3])

        def start(self) -> None:
            pass

    pipe = SimpleNamespace(close=lambda: None)
    context = SimpleNamespace(Pipe=lambda: (pipe, pipe), Process=Process)
    monkeypatch.setattr("multiprocessing.get_context", lambda method: context)
    processes = local._Processes(Task((), 1, devices), len(devices))
    for _ in devices:
        processes.start()
    return told


def test_each_of_several_processes_sees_its_gpu_and_a_single_one_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder of a single one was told `cuda:1`, as it is numbered among all."""
    assert shown(monkeypatch, "cuda:1", "cuda:3") == ["cuda:1", "cuda:3"]
    assert shown(monkeypatch, "cuda:1") == [""]


def test_what_measures_for_several_gpus_runs_on_the_first_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    each_device("cuda:2,3", "cuda")
    try:
        assert prepare_device("cuda", 1) == torch.device("cuda", 2)
    finally:
        restore_torch()
    try:
        assert prepare_device("cuda", 1) == torch.device("cuda")
        assert prepare_device("cuda:1", 1) == torch.device("cuda", 1)
    finally:
        restore_torch()


# what is told


def test_use_is_told_of_gpus_with_own_memory_and_without_what_a_library_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NVMLError(Exception):
        pass

    def refused(index: int) -> int:
        raise NVMLError("Not Supported")

    asked: list[int] = []
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 3,
        memory_reserved=lambda index: 5 * (index == 1),
        mem_get_info=lambda index: asked.append(index) or (3, 10),
        utilization=refused,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    library: Any = ModuleType("pynvml")
    library.NVMLError = NVMLError
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert _gpus() == (GpuUse(7, 10, None),)
    assert asked == [1]
    cuda.utilization = lambda index: 71
    assert _gpus() == (GpuUse(7, 10, 0.71),)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert _gpus() == (GpuUse(7, 10, None),)


# memory


@pytest.mark.parametrize(
    "text",
    [
        "GET was unable to find an engine to execute this computation",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "backend='inductor' raised: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    ],
)
def test_what_libraries_tell_where_memory_is_short(text: str) -> None:
    """A batch of two does not fit, one does."""
    assert is_out_of_memory(RuntimeError(text))

    def run(batch: list[int], most: int) -> list[int]:
        if len(batch) > most:
            raise RuntimeError(text)
        return batch

    assert Halving[int]("image").in_halves(lambda batch: run([*batch], 1), [1, 2], lambda limit: None) == [1, 2]
    with pytest.raises(ModelError, match=r"not even one image fits .* --device cpu. Found: ") as error:
        Halving[int]("image").in_halves(lambda batch: run([*batch], 0), [1, 2], lambda limit: None)
    assert text in str(error.value)  # it may be of something else


def test_a_model_that_does_not_fit_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")

    with (
        pytest.raises(DeviceFullError, match="t5 does not fit in the device's memory: use --dtype bfloat16"),
        load_errors("t5"),
    ):
        full()
    monkeypatch.setattr("diffusers.AutoencoderKL.to", full)
    with pytest.raises(DeviceFullError, match=r"does not fit in .*, or --device cpu. Found: CUDA out of memory"):
        load_vae(resolve(str(TINY_VAE)), torch.device("cpu"), torch.float32)


def test_a_text_encoder_that_is_closed_is_gone_at_once() -> None:
    """Another process is about to load it on the same GPU."""
    spec = TextSpec(resolve_text(str(DATA / "models" / "tiny-t5")), "cpu", "float32", 300, 1)
    samples = [Sample(SampleRef(0, "", ""), tokens.ids, "") for tokens in spec.tokenize(["a cat"])]
    gc.collect()
    gc.disable()
    try:
        model = weakref.ref(spec.open().model)
        spec.open().encode(samples)
        spec.close()
        assert model() is None
    finally:
        gc.enable()


# kernels


def test_inductor_does_not_choose_kernels_by_the_clock() -> None:
    told: list[dict[str, Any]] = []
    module = SimpleNamespace(compile=lambda **how: told.append(how))
    compile_module(module, "inductor")
    compile_module(module, "eager")
    known = hasattr(torch._inductor.config, "deterministic")
    assert [how["options"] for how in told] == [{"deterministic": True} if known else None, None]


def test_constants_go_to_the_device_once() -> None:
    one = _constants((0.5, 0.25), torch.device("cpu"))
    assert one is _constants((0.5, 0.25), torch.device("cpu"))
    assert one.tolist() == [0.5, 0.25]
    assert one.dtype == torch.float32

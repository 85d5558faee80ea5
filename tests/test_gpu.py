"""What only a GPU brings about, played on a CPU: its precision, which GPU is whose, memory that is short."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from diffusers import AutoencoderKL

from latentmill.devices import each_device
from latentmill.encoders import device
from latentmill.encoders.compiling import compile_module
from latentmill.encoders.device import prepare_device, restore_torch
from latentmill.encoders.memory import DeviceFullError, Halving, is_out_of_memory
from latentmill.encoders.models import resolve
from latentmill.encoders.text import TextSpec
from latentmill.encoders.text_models import resolve_text
from latentmill.encoders.vae import VaeSpec
from latentmill.encoders.vision import vision_spec
from latentmill.errors import ModelError
from latentmill.records import Encoded, Sample
from latentmill.runners import local
from latentmill.usage import GpuUse, _gpus
from latentmill.worker import Task
from support import DATA, TINY_VAE
from tiny_vision import SIDE, photo, sample, saved

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
    "older flags": "torch.backends.cuda.matmul.allow_tf32 = True; torch.backends.cudnn.allow_tf32 = False",
    "cuDNN in TF32": "torch.backends.cudnn.fp32_precision = 'tf32'",
    "a CPU's products in bfloat16": "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
}
SCRIPT = """
import torch
from latentmill.encoders.device import prepare_device, restore_torch
from latentmill.errors import ModelError
b = torch.backends
places = b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv
def state():
    try:
        word = torch.get_float32_matmul_precision()
    except RuntimeError:
        word = None
    return word, b.cudnn.benchmark, b.cudnn.deterministic, torch.get_num_threads(), [p.fp32_precision for p in places]
def flag():
    try:
        return b.cudnn.allow_tf32
    except RuntimeError:
        return None
fresh = state()
for name, begin in {begun!r}.items():
    torch.set_num_threads(3)
    exec(begin)
    before, asked = state(), flag()
    for turn in range(2):
        prepare_device("cpu", turn + 1)
        assert state() == ("highest", False, True, turn + 1, ["ieee"] * 5), (name, state())
    try:
        prepare_device("mps" if torch.cuda.is_available() else "cuda", 1)
    except ModelError:
        pass
    restore_torch()
    assert (state(), flag()) == (before, asked), (name, before, asked, state(), flag())
    print(name)
    torch.set_num_threads(fresh[3])
    b.fp32_precision = b.cudnn.fp32_precision = "none"
    b.cudnn.allow_tf32, b.cudnn.benchmark = True, False
    torch.set_float32_matmul_precision(fresh[0])
    for place, precision in zip(places, fresh[4]):
        place.fp32_precision = precision
    assert state() == fresh, (name, state())
"""


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="of PyTorch 2.9 and later")
def test_float32_is_exact_whatever_the_caller_has_set_and_all_is_given_back() -> None:
    """In a process of its own: these are settings of a whole process."""
    script = SCRIPT.format(begun=BEGUN)
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    assert done.stdout.splitlines() == list(BEGUN)


def test_other_code_may_ask_for_cudnns_flag_meanwhile() -> None:
    """As `torch.backends.cudnn.flags`, models of transformers and Inductor's convolutions do."""
    prepare_device("cpu", 1)
    with torch.backends.cudnn.flags(enabled=True):
        pass
    assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.conv.fp32_precision != "tf32"


def test_an_older_pytorch_has_one_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> list[Any]:
        raise AttributeError("fp32_precision")

    words = ["medium"]
    monkeypatch.setattr(device, "_places", none)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: words[-1])
    monkeypatch.setattr(torch, "set_float32_matmul_precision", words.append)
    before = {"allow_tf32": True, "benchmark": True, "deterministic": False}
    monkeypatch.setattr(torch.backends, "cudnn", SimpleNamespace(**before))
    for _ in range(2):
        prepare_device("cpu", 1)
        assert vars(torch.backends.cudnn) == {"allow_tf32": False, "benchmark": False, "deterministic": True}
        assert words[-1] == "highest"
    restore_torch()
    assert vars(torch.backends.cudnn) == before
    assert words[-1] == "medium"


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
        assert prepare_device("cuda:1", 1) == torch.device("cuda", 1)
    finally:
        restore_torch()
    try:
        assert prepare_device("cuda", 1) == torch.device("cuda")
        assert prepare_device("cuda:1", 1) == torch.device("cuda", 1)
        monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
        assert each_device("cuda", "cuda") == ("cuda",)
        assert each_device("cuda:0", "cuda:0") == ("cuda:0",)
        assert prepare_device("cuda", 1) == torch.device("cuda")
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


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: device-side assert triggered",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
        "Cannot access data pointer of Tensor that doesn't have storage",
    ],
)
def test_what_is_not_short_memory(text: str) -> None:
    """Of halves it would be told again and again, and then as advice that does not help."""
    assert not is_out_of_memory(RuntimeError(text))


def test_what_the_device_told_last_is_one_line_of_a_bounded_length() -> None:
    def run(batch: Sequence[int]) -> list[int]:
        raise RuntimeError(f"CUDA out of memory.\nTried to allocate {len(batch)} GiB\n" + "see the manual " * 100)

    with pytest.raises(ModelError, match=r"Found: CUDA out of memory. Tried to allocate 1 GiB see the") as error:
        Halving[int]("image").in_halves(run, [1, 2, 3], lambda limit: None)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("step", ["from_pretrained", "to"])
@pytest.mark.parametrize("kind", ["text", "vision", "vae"])
def test_an_encoder_that_does_not_fit_may_be_opened_once_there_is_room(
    kind: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9.00 GiB")

    spec, model, _ = made(kind, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(model, step, full)
        with pytest.raises(
            DeviceFullError, match=r"use --dtype bfloat16, or --device cpu\. Found: CUDA out of memory\. T"
        ):
            spec.open()
    assert spec.open() is spec.open()


@pytest.mark.parametrize("kind", ["text", "vision", "vae"])
def test_an_encoder_that_is_closed_is_gone_at_once(kind: str, tmp_path: Path) -> None:
    """Another process is about to load it on the same GPU."""
    spec, _, samples = made(kind, tmp_path)
    gc.collect()
    gc.disable()
    try:
        encoder = spec.open()
        model = weakref.ref(encoder.vae if kind == "vae" else encoder.model)
        (result,) = encoder.encode(samples)
        assert isinstance(result, Encoded)
        del encoder
        spec.close()
        assert model() is None
    finally:
        gc.enable()


def made(kind: str, folder: Path) -> tuple[Any, type, list[Sample]]:
    """An encoder's spec, the class of its model, and one sample that it takes."""
    if kind == "text":
        text = TextSpec(resolve_text(str(DATA / "models" / "tiny-t5")), "cpu", "float32", 300, 1)
        return text, transformers.T5EncoderModel, [sample(text.tokenize(["a cat"])[0].ids)]
    pixels = photo(SIDE, SIDE)
    if kind == "vision":
        vision, _ = vision_spec(str(saved(folder / "siglip", "siglip_vision_model")), device="cpu")
        return vision, transformers.SiglipVisionModel, [sample(vision.resize(pixels))]
    vae = VaeSpec(resolve(str(TINY_VAE)), "cpu", "float32", (-1.0, 1.0), "moments", 0, "float32", 1)
    return vae, AutoencoderKL, [sample(pixels)]


# kernels


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # of Inductor's own imports
def test_inductor_does_not_choose_kernels_by_the_clock() -> None:
    told: list[dict[str, Any]] = []
    module = SimpleNamespace(compile=lambda **how: told.append(how))
    compile_module(module, "inductor")
    compile_module(module, "eager")
    known = hasattr(torch._inductor.config, "deterministic")
    assert [how["options"] for how in told] == [{"deterministic": True} if known else None, None]
    compile_module(torch.nn.Linear(1, 1), "inductor")  # which refuses an option that it does not know


def test_an_inductor_that_has_no_such_option_is_told_none(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor, "config", SimpleNamespace(max_autotune=False))
    compile_module(SimpleNamespace(compile=lambda **how: told.append(how)), "inductor")
    assert [how["options"] for how in told] == [None]

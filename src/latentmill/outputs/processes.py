"""How many processes an output's work is spread over, and the threads of each. Neither changes what is planned."""

from __future__ import annotations

from latentmill.config import OutputSettings
from latentmill.config_types import RAY
from latentmill.devices import cpu_processes, each_device
from latentmill.files import counted
from latentmill.formats.metadata import Value
from latentmill.outputs.common import stored_int
from latentmill.stages import EncoderSpec
from latentmill.system import usable_cores


def encoder_threads(chosen: OutputSettings, made_with: dict[str, Value]) -> int:
    """Of a forward on the CPU: as asked, as the destination was begun with, or what each process may use.

    Results may depend on it, so it is in the fingerprint, as the number of processes is not.
    """
    return chosen.threads or stored_int(made_with, "threads") or _cores_each(chosen)


def _cores_each(chosen: OutputSettings) -> int:
    processes = cpu_processes(chosen.device)
    if chosen.runner != RAY or processes == 1:
        return max(1, usable_cores() // processes)
    from latentmill.runners.ray_cluster import capacity

    found = capacity(chosen.ray_address)
    return max(1, min(found.largest, found.cores // processes))


def encoder_devices(chosen: OutputSettings, spec: EncoderSpec, threads: int) -> tuple[str, ...]:
    """The device of each process that encodes. Raises ModelError where one is not there."""
    device = getattr(spec, "device", "cpu")
    if chosen.runner == RAY:
        from latentmill.runners.ray_cluster import encoders

        return encoders(chosen.ray_address, chosen.device, device, threads)
    return each_device(chosen.device, device)


def told(threads: int, device: str, devices: tuple[str, ...]) -> str:
    """Where an encoder runs, for a person."""
    each = f"{len(devices)} processes, each with " if len(devices) > 1 else ""
    return f"{each}{counted(threads, 'threads')} on {device}"


def pixel_workers(chosen: OutputSettings) -> int:
    """Processes of a pass of pixels alone: as asked, or one for each core."""
    if chosen.num_workers is None and chosen.runner == RAY:
        from latentmill.runners.ray_cluster import capacity

        return capacity(chosen.ray_address).cores
    return chosen.num_workers or usable_cores()

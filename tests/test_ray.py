"""The Ray runner: the bytes of the local one on two nodes, when a node is lost, a worker killed, the driver killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import latentmill
from latentmill.careful import WORKER
from latentmill.encoders.fake import FakeSpec
from latentmill.errors import ConfigError, DestinationError, LatentmillError, ModelError, SourceError
from latentmill.files import digest
from latentmill.loading import Decoded, ImageLoad
from latentmill.records import Progress, Sample, SampleRef, ShardReport
from latentmill.runners import ray_actors, ray_cluster
from latentmill.runners.local import run_local
from latentmill.runners.ray_actors import Driver, check_shared, run_ray
from latentmill.runners.work import Failed
from latentmill.worker import Task
from support import (
    CAN_FORK,
    Event,
    command,
    command_of_small_shards,
    contents,
    descendants,
    ledger,
    make_photos,
    run_shards,
    running,
    task_for,
    wait_until,
)

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(not CAN_FORK, reason="clusters of several nodes on one machine are for Linux")
LOAD = ("none", (32, 32), "ignore", "drop", (32, 32))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes, of one core and of two."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    found.add_node(num_cpus=2)
    yield found
    raylets = [node.all_processes["raylet"][0].process.pid for node in found.list_all_nodes()]
    below = [pid for raylet in raylets for pid in (raylet, *descendants(raylet))]
    found.shutdown()
    assert wait_until(lambda: not any(map(running, below)), 20), "a process of Ray was left behind"


def run_there(task: Task, workers: int, cluster: Any) -> list[Event]:
    """Run all shards of a task of one part; gives what was emitted."""
    events: list[Event] = []
    shards = range(len(task.parts[0].plan.shards))
    run_shards(task, shards, events.append, lambda t, units, emit: run_ray(t, units, workers, emit, cluster.address))
    assert not ray.is_initialized()
    return events


def made_here(task: Task) -> None:
    shards = range(len(task.parts[0].plan.shards))
    run_shards(task, shards, lambda event: None, lambda task, units, emit: run_local(task, units, 1, emit))


def data(folder: Path) -> dict[str, bytes]:
    return {name: found for name, found in contents(folder).items() if not name.startswith(".latentmill")}


@pytest.mark.parametrize(("workers", "encodes"), [(1, True), (2, True), (5, False)])
def test_any_number_of_actors_gives_the_bytes_of_one_process(
    photos: Path, tmp_path: Path, cluster: Any, workers: int, encodes: bool
) -> None:
    encoder = FakeSpec() if encodes else None
    names = ("lat", "img") if encodes else ("img",)
    here, there = ([tmp_path / place / name for name in names] for place in ("here", "there"))
    made_here(task_for(photos, *here, encoder=encoder))
    events = run_there(task_for(photos, *there, encoder=encoder), workers, cluster)
    assert [data(place) for place in there] == [data(place) for place in here]
    assert all(len(data(place)) == 12 for place in there)
    assert sorted(event.shard for event in events if isinstance(event, ShardReport)) == [0, 1, 2]
    assert sum(event.done for event in events if isinstance(event, Progress)) == 12
    assert not list(tmp_path.rglob("stage/*"))


class Waiting(ImageLoad):
    """Tells which process it is in, and then waits with a photo of the middle until it may go on."""

    def __call__(self, ref: SampleRef, decoded: Decoded) -> Sample | None:
        here: Path = self.__dict__["here"]
        (here / str(os.getpid())).touch()
        if ref.index > 8:
            wait_until((here / "go").exists, 60)
        return super().__call__(ref, decoded)


class Deadly(ImageLoad):
    """Kills its process at one photo."""

    def __call__(self, ref: SampleRef, decoded: Decoded) -> Sample | None:
        if ref.index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(ref, decoded)


def test_a_node_that_is_lost_costs_nothing_but_its_time(tmp_path: Path, cluster: Any) -> None:
    make_photos(tmp_path / "photos", 40)
    made_here(task_for(tmp_path / "photos", tmp_path / "here"))
    load = Waiting(*LOAD)
    load.__dict__["here"] = tmp_path / "seen"
    (tmp_path / "seen").mkdir()
    node = cluster.add_node(num_cpus=2)
    raylet = node.all_processes["raylet"][0].process.pid
    task = task_for(tmp_path / "photos", tmp_path / "there", load=load)

    def lose() -> bool:
        """The node, as soon as one of its workers is in the middle of a shard."""
        at_work = wait_until(lambda: any((tmp_path / "seen" / str(pid)).exists() for pid in descendants(raylet)), 40)
        below = descendants(raylet)
        cluster.remove_node(node, allow_graceful=False)
        for pid in filter(running, below):
            os.kill(pid, signal.SIGKILL)
        (tmp_path / "seen" / "go").touch()
        return at_work

    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(lose)
        events = run_there(task, 5, cluster)
        assert lost.result()
    assert data(tmp_path / "there") == data(tmp_path / "here")
    assert sum(event.done for event in events if isinstance(event, Progress)) == 40
    assert not any(event.rejected for event in events if isinstance(event, Progress))


def test_a_photo_that_kills_its_actor_is_rejected(photos: Path, tmp_path: Path, cluster: Any) -> None:
    made_here(task_for(photos, tmp_path / "here"))
    task = task_for(photos, tmp_path / "there", load=Deadly(*LOAD))
    events = run_there(task, 2, cluster)
    rejected = [outcome for outcome in task.parts[0].plan.computed() if outcome.stage]
    assert [(outcome.ref.index, outcome.stage) for outcome in rejected] == [(5, WORKER)]
    assert "for want of memory, or crashed" in rejected[0].reason
    left = data(tmp_path / "here")
    del left["00000/img00000005.png"]
    assert data(tmp_path / "there") == left
    assert sum(event.rejected for event in events if isinstance(event, Progress)) == 1


@pytest.mark.parametrize(("pickled", "said"), [(b"clatentmill.worker\nNoSuchClass\n.", "lacks what the driver has"),
                                               (b"nothing", "failed before it began")])  # fmt: skip
def test_an_actor_that_cannot_take_up_its_work_says_so(pickled: bytes, said: str) -> None:
    actor = ray_actors.Actor(pickled, 1, Driver("driver", "/nowhere", (), ()))
    actor.work()
    (told,) = actor.messages
    assert isinstance(told, Failed)
    assert f"{socket.gethostname()} {said}" in str(told.error)


def test_an_actor_whose_work_ends_with_an_error_is_a_death(
    photos: Path, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(ray_actors.Actor):
        def work(self) -> None:
            raise ZeroDivisionError("nobody foresaw this")

    monkeypatch.setattr(ray_actors, "Actor", Failing)
    with pytest.raises(LatentmillError, match=r"its work ended with an error .*nobody foresaw this"):
        run_there(task_for(photos, tmp_path / "out"), 2, cluster)


def test_when_the_driver_is_killed_its_actors_end_and_a_rerun_goes_on(tmp_path: Path, cluster: Any) -> None:
    make_photos(tmp_path / "photos", 120)
    crop = {"resolution": "32x32", "transform": "center-crop", "batch_size": 2, "threads": 1}
    latentmill.encode(tmp_path / "photos", tmp_path / "here", **crop, model_url="fake", device="cpu")
    flags = [part for name, value in crop.items() for part in (f"--{name.replace('_', '-')}", value)]
    there = ("--runner", "ray", "--ray-address", cluster.address, "--device", "cpu:2")
    places = ("--source", tmp_path / "photos", "--dest", tmp_path / "there", "--vae", "fake")
    arguments = command_of_small_shards("encode", *places, *flags, *there)
    raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()]

    def actors() -> list[int]:
        return [pid for raylet in raylets for pid in descendants(raylet) if "ray::Actor" in title(pid)]

    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as driver:
        assert wait_until(lambda: len(ledger(tmp_path / "there")) > 3 or driver.poll() is not None, 60)
        assert actors()
        driver.kill()
        output, _ = driver.communicate(timeout=30)
    assert driver.returncode == -signal.SIGKILL, output
    assert wait_until(lambda: not actors(), 30), "an actor outlived its driver"
    done = len(ledger(tmp_path / "there")) * 2
    again = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert f"going on: {done} of 120 images are done" in again.stdout
    assert again.stderr == ""
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_without_a_cluster_one_is_started_and_ended_without_a_word(photos: Path, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    arguments = command("convert", "--source", photos, "--dest", tmp_path / "out", "--resolution", "32x32",
                        "--transform", "center-crop", "--runner", "ray", "--num-workers", 2)  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"MARK": mark}
    made = subprocess.run(arguments, capture_output=True, text=True, timeout=120, env=environment)
    assert made.returncode == 0, made.stderr
    assert made.stderr == ""
    assert all(line.startswith(("convert", "  report:", "look:")) for line in made.stdout.splitlines()), made.stdout
    assert wait_until(lambda: not marked(mark), 20), "a process of Ray was left behind"
    latentmill.convert(photos, tmp_path / "here", resolution="32x32", transform="center-crop", num_workers=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "here")


def marked(mark: str) -> list[int]:
    """Processes of this environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes() and running(int(folder.name)):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


# what is refused


def test_a_machine_that_does_not_see_the_destination_or_the_source(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_actors, "_SEEN_SECONDS", 0.0)
    task = task_for(photos, tmp_path / "out")
    plan = task.parts[0].plan.folder / "plan.json"
    driver = Driver("driver", "", (), (digest(plan.read_bytes()),))
    check_shared(task, driver)
    with pytest.raises(DestinationError, match=r"does not see .*, which driver has written: .* file system"):
        check_shared(task, driver._replace(plans=("another",)))
    photos.rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match=f"{socket.gethostname()} does not see the source"):
        check_shared(task, driver)
    plan.unlink()
    with pytest.raises(DestinationError, match="Choose such a --dest"):
        check_shared(task, driver)


def test_settings_that_do_not_go_with_ray(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(**settings: Any) -> None:
        latentmill.encode(photos, tmp_path / "out", resolution="32x32", model_url="fake", **settings)

    with pytest.raises(ConfigError, match="device of runner ray must be cuda, for every GPU of the cluster"):
        made(runner="ray", device="cuda:0,1")
    with pytest.raises(ConfigError, match="ray-address is of runner ray"):
        made(ray_address="auto")
    with pytest.raises(ConfigError, match="ray-address must be of the cluster itself"):
        made(runner="ray", ray_address="ray://head:10001")
    with pytest.raises(ModelError, match="the Ray cluster has no GPU"):
        monkeypatch.setattr(ray_cluster, "capacity", lambda address: ray_cluster.Capacity(4, 0, 4))
        ray_cluster.encoders("head:6379", "cuda", "cuda", 1)
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'latentmill\[ray\]'"):
        made(runner="ray")
    assert not (tmp_path / "out").exists()


def test_encoders_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "capacity", lambda address: ray_cluster.Capacity(24, 6, 16))
    assert ray_cluster.encoders("head:6379", "cuda", "cuda", 8) == ("cuda",) * 6
    assert ray_cluster.encoders("head:6379", "cpu", "cpu", 8) == ("cpu",) * 3
    assert ray_cluster.encoders("head:6379", "cpu:5", "cpu", 8) == ("cpu",) * 5


def test_nobody_at_the_address() -> None:
    with pytest.raises(LatentmillError, match="no Ray cluster can be joined at nothing-here"):
        ray_cluster.connect("nothing-here")

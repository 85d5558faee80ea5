"""A command that outlives the death of its process: a small parent waits for it, and begins it once more.

Where one process does all the work, because one device encodes, a kill (by the kernel for want of memory, say) would
end the job. So, before anything is imported, the command forks on Linux: the parent only waits, hands signals on, and
ends as its child does. A child that is killed is begun once more, and then does its work in a worker process, even a
single one: the ledger tells what is done, and the scheduler (`runners.scheduler`) rejects the image that kills.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from latentmill.streams import EXIT_FAILED

SUPERVISED = frozenset({"convert", "encode", "decode", "pixart", "run"})  # what commits as it goes
_KILLS = ("SIGKILL", "SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE")  # what a process does not wish for itself
_HANDED_ON = ("SIGINT", "SIGTERM", "SIGHUP")
_PR_SET_PDEATHSIG = 1
_SHOW_CURSOR = "\x1b[?25h"


@dataclass
class _Command:
    """killed: the signal that ended the process before this one. cleared: descriptor of a file in memory, see below."""

    killed: int | None = None
    cleared: int | None = None


_command = _Command()


def killed_before() -> int | None:
    """The signal that killed the process that began this command, where this one goes on in its place."""
    return _command.killed


def note_cleared(place: Path) -> None:
    """For a process that may take this one's place: `--overwrite` has removed what was there."""
    if _command.cleared is not None:
        os.write(_command.cleared, os.fsencode(place.absolute()) + b"\0")


def cleared_before(place: Path) -> bool:
    """Whether this command has cleared a destination before it was killed: what is there now is its own work."""
    if _command.cleared is None or _command.killed is None:
        return False
    noted = os.pread(_command.cleared, os.fstat(_command.cleared).st_size, 0)
    return os.fsencode(place.absolute()) in noted.split(b"\0")


def supervise(words: Sequence[str]) -> None:
    """Return in a process that does the work, twice at most; this one waits, and ends as that does.

    words: of the command line, the command first. Any command but those that are supervised returns at once, and so
    does a process that has threads, which would not outlive a fork.
    """
    if sys.platform != "linux" or not SUPERVISED.intersection(words[:1]) or sys.gettrace() or sys.getprofile():
        return
    if threading.active_count() > 1 or "torch" in sys.modules:
        return
    watched = {signal.SIGCHLD, *(signal.Signals[name] for name in _HANDED_ON)}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, nobody is told of a child's end
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    _command.cleared = os.memfd_create("latentmill-cleared")
    parent = os.getpid()
    kills = {-signal.Signals[name] for name in _KILLS}
    code, stopped = 0, False
    for _ in range(2):
        child = os.fork()
        if not child:
            die_with(parent)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            return
        code, stopped = _ended(child, watched)
        if stopped or code not in kills:
            break
        again = _command.killed is not None
        _command.killed = -code
        _show_cursor()
        if again:
            _end_killed(code)
    _end_as(code)


def die_with(parent: int) -> None:
    """Have the system kill this process when `parent`, which began it, ends, and end now where it has already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def told_ending(code: int | None) -> str:
    """How a process ended, as a clause for a person. code: its exit code, or minus the signal."""
    if code is not None and code >= 0:
        return f"the process ended with exit code {code}"
    if code == -getattr(signal, "SIGKILL", 9):
        return "the process was killed by signal 9 (SIGKILL), most likely for want of memory"
    names = {int(each): each.name for each in signal.Signals}
    return f"the process was killed by signal {-(code or 0)} ({names.get(-(code or 0), 'of no name')})"


def _ended(child: int, watched: set[signal.Signals]) -> tuple[int, bool]:
    """Wait for a child, and hand on what this process is told; its exit code, or minus its signal, and if it was told.

    A terminal and some schedulers tell both: a command minds the first only. Whatever else this process has inherited,
    as the first of a container does, is reaped on the way.
    """
    told = False
    while True:
        number = signal.sigwaitinfo(watched).si_signo
        if number != signal.SIGCHLD:
            told = True
            os.kill(child, number)
            continue
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == child:
                return os.waitstatus_to_exitcode(status), told
            if not pid:
                break


def _show_cursor() -> None:
    """A bar that was being drawn has hidden it."""
    if sys.stdout is not None and sys.stdout.isatty():
        sys.stdout.write(_SHOW_CURSOR)
        sys.stdout.flush()


def _end_killed(code: int) -> NoReturn:
    memory = ", with a smaller --batch-size, or where there is more memory" if code == -signal.SIGKILL else ""
    if sys.stderr is not None:
        sys.stderr.write(
            f"error: {told_ending(code)}, for the second time. What is committed stays; run the same command again to "
            f"go on{memory}\n"
        )
        sys.stderr.flush()
    os._exit(EXIT_FAILED)


def _end_as(code: int) -> NoReturn:
    """End this process as a child ended."""
    if code >= 0:
        os._exit(code)
    signal.signal(-code, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
    os.kill(os.getpid(), -code)
    os._exit(128 - code)

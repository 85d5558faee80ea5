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

SUPERVISED = frozenset({"convert", "encode", "decode", "pixart", "run"})
_KILLS = ("SIGKILL", "SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE")  # what a process does not wish for itself
_HANDED_ON = ("SIGINT", "SIGTERM", "SIGHUP")
_PR_SET_PDEATHSIG = 1
_EXIT_FAILED = 2  # as `guard` has it, which is not imported here
_SI_KERNEL = 0x80  # a terminal tells all of its processes itself

_killed: int | None = None  # the signal that ended the process before this one


def killed_before() -> int | None:
    """The signal that killed the process that began this command, where this one goes on in its place."""
    return _killed


def supervise() -> None:
    """Return in a process that does the work, twice at most; this one waits, and ends as that does."""
    global _killed
    if sys.platform != "linux" or not SUPERVISED.intersection(sys.argv[1:2]) or sys.gettrace() or sys.getprofile():
        return
    watched = {signal.SIGCHLD, *(signal.Signals[name] for name in _HANDED_ON)}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    parent = os.getpid()
    code = 0
    for _ in range(2):
        child = os.fork()
        if not child:
            die_with(parent)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            return
        code = _ended(child, watched)
        if code not in {-signal.Signals[name] for name in _KILLS}:
            break
        _killed = -code
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


def _ended(child: int, watched: set[signal.Signals]) -> int:
    """Wait for a child, and hand on what this process is told; gives its exit code, or minus its signal."""
    while True:
        told = signal.sigwaitinfo(watched)
        if told.si_signo != signal.SIGCHLD:
            if told.si_code != _SI_KERNEL:
                os.kill(child, told.si_signo)
            continue
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)


def _end_as(code: int) -> None:
    """End this process as a child ended; one that was killed twice with a line on it."""
    if code >= 0:
        os._exit(code)
    if _killed == -code:
        sys.stderr.write(
            f"error: {told_ending(code)}, for the second time. What is committed stays; run the same command again to "
            "go on, with a smaller --batch-size, or where there is more memory\n"
        )
        sys.stderr.flush()
        os._exit(_EXIT_FAILED)
    signal.signal(-code, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
    os.kill(os.getpid(), -code)
    os._exit(128 - code)

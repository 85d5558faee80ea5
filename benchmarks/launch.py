"""Run a program and print what it took as JSON: wall and CPU seconds, bytes of the largest of its processes.

In a process of its own, and a small one: on Linux a program's peak memory begins with that of whoever starts it.

    python benchmarks/launch.py PROGRAM [ARGUMENT]...
"""

import json
import os
import subprocess
import sys
import time


def main() -> None:
    start = time.perf_counter()
    with subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL) as child:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    print(json.dumps({"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss * 1024}))
    sys.exit(1 if child.returncode else 0)


if __name__ == "__main__":
    main()

"""Write to so much new memory, and print the seconds that it took.

A virtual machine may get its memory from the host as it first writes to it, and give it back some seconds after it was
freed. A page then takes nine times as long as one that it has: a program that writes files pays for that, one that only
reads does not. In a process of its own, which gives back all of it as it ends.

    python benchmarks/touch.py BYTES
"""

from __future__ import annotations

import mmap
import sys
import time

import numpy as np


def main() -> None:
    start = time.perf_counter()
    np.empty(int(sys.argv[1]), np.uint8)[:: mmap.PAGESIZE] = 1
    print(f"{time.perf_counter() - start:.2f}")


if __name__ == "__main__":
    main()

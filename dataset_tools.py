"""Drop-in for the reference `dataset_tools.py`: `convert` and `encode` with exactly its options."""

import sys

from latentmill.__main__ import begin

if __name__ == "__main__":
    begin("latentmill.dropin", sys.argv[1:])

"""Drop-in for the reference `dataset_tools.py`: `convert` and `encode` with exactly its options."""

from latentmill.dropin import dataset_tools

if __name__ == "__main__":
    dataset_tools()

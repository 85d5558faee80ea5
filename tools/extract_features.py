"""Drop-in for the reference `extract_features.py`: VAE and T5 features with exactly its options."""

from latentmill.__main__ import begin

if __name__ == "__main__":
    begin("latentmill.dropin_features", ["pixart"])  # the command that is supervised as this one is

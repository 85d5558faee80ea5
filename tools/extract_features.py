"""Drop-in for the reference `extract_features.py`: VAE and T5 features with exactly its options."""

from latentmill.dropin_features import extract_features

if __name__ == "__main__":
    extract_features()

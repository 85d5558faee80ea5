"""Make `mini-t5`, the tiny text encoder that latentmill ships for trying and testing. Its weights are random.

    python tools/make_mini_text.py [--out src/latentmill/assets/mini-t5]

The tokenizer is a Unigram of T5's form, trained on the sentences below and on this repository's own English
(README.md and docs/). The weights come out the same each time; of the tokenizer, the library varies last digits and
sometimes a piece, so run this only to make another `mini-t5`, and look at what changed.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import T5Config, T5EncoderModel

ROOT = Path(__file__).parent.parent
TOKENS = 1024
WIDTH = 64
SPECIAL = ["<pad>", "</s>", "<unk>"]  # ids 0, 1 and 2, as T5 has them

SUBJECTS = (
    "a photo of a ginger cat", "two dogs", "a woman in a red coat", "an old man with a beard", "a child", "astronauts",
    "a white horse", "a flock of birds", "a bowl of fruit", "a cup of coffee", "a vase of pink flowers", "a motorcycle",
    "a steam train", "a wooden boat", "a stone bridge", "a temple with a tiled roof", "a rocket", "a lighthouse",
    "an oil painting of a village", "a close-up portrait of a young girl", "a black and white photograph of a street",
    "a watercolor of mountains", "a group of people", "a glass of water", "a field of grass", "silver coins",
)  # fmt: skip
SETTINGS = (
    "sitting on a chair", "on a wooden table", "in front of a window", "under a clear blue sky", "at night", "at dusk",
    "in the snow", "on the beach", "with trees in the background", "looking at the camera", "in soft morning light",
    "standing on its launch pad", "next to a river", "in a crowded market", "seen from above", "out of focus",
    "with green eyes and long white whiskers", "walking through a park", "reflected in the water", "with dark shadows",
    "in a small kitchen", "against a white wall", "filling the frame", "covered with leaves", "on a rainy day",
)  # fmt: skip


def training_text() -> list[str]:
    """Caption-like sentences, and the paragraphs of this repository's documents."""
    captions = [f"{subject} {setting}" for subject, setting in product(SUBJECTS, SETTINGS)]
    captions += [f"{caption[0].upper()}{caption[1:]}." for caption in captions]
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return captions + [line for path in documents for line in path.read_text(encoding="utf-8").splitlines() if line]


def make_tokenizer(folder: Path) -> None:
    """A tokenizer.json with T5's ids, word marks and closing token; without its normaliser and sentinels."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    alphabet = [chr(code) for code in range(33, 127)]
    trainer = trainers.UnigramTrainer(
        vocab_size=TOKENS, special_tokens=SPECIAL, unk_token="<unk>", initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "T5Tokenizer",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "extra_ids": 0,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def make_encoder(folder: Path) -> None:
    """Two layers of random float16 weights."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=TOKENS,
        d_model=WIDTH,
        d_kv=16,
        d_ff=WIDTH,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    T5EncoderModel(config).half().save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "src" / "latentmill" / "assets" / "mini-t5")
    out = parser.parse_args().out
    make_tokenizer(out / "tokenizer")
    make_encoder(out / "text_encoder")
    print(f"{sum(path.stat().st_size for path in out.rglob('*') if path.is_file()):,} bytes in {out}")


if __name__ == "__main__":
    main()

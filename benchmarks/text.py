"""Text features against what they replace: one caption at a time, padded to 300, in the same model and threads.

    python benchmarks/text.py [--captions 200] [--rounds 3] [--width 512] [--layers 6]

A T5 encoder of random weights costs the time of a real one. Captions have COCO's lengths: about 10.5 words (2.4), here
of one token each. Real tokens are compared before any time is told.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

import latentmill
from latentmill.formats.pixart import PixArtText

WORDS_MEAN, WORDS_DEVIATION, MAX_LENGTH = 10.5, 2.4, 300


def make_model(folder: Path, width: int, layers: int) -> None:
    """A random T5 encoder beside the embedded tokenizer, in the hub's form."""
    with as_file(files("latentmill") / "assets" / "mini-t5" / "tokenizer") as tokenizer:
        T5TokenizerFast.from_pretrained(tokenizer).save_pretrained(folder / "tokenizer")
    config = T5Config(
        vocab_size=2048, d_model=width, d_kv=64, d_ff=4 * width, num_heads=width // 64, num_layers=layers,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    torch.manual_seed(0)
    T5EncoderModel(config).save_pretrained(folder / "text_encoder")


def make_captions(folder: Path, count: int) -> list[str]:
    """Captions of words that are one token each, with COCO's number of words."""
    tokenizer = T5TokenizerFast.from_pretrained(folder / "tokenizer")
    words = [token[1:] for token in tokenizer.get_vocab() if token.startswith("▁") and token[1:].isalpha()]
    random = np.random.default_rng(0)
    lengths = np.clip(random.normal(WORDS_MEAN, WORDS_DEVIATION, count).round(), 7, 40).astype(int)
    return [" ".join(random.choice(sorted(words), length)) for length in lengths]


def one_at_a_time(folder: Path, captions: list[str], dest: Path) -> float:
    """Seconds for the scheme that is replaced: each caption alone, padded, written with savez_compressed."""
    tokenizer = T5TokenizerFast.from_pretrained(folder / "tokenizer")
    model = T5EncoderModel.from_pretrained(folder / "text_encoder").eval()
    dest.mkdir(parents=True)
    start = time.perf_counter()
    with torch.inference_mode():
        for number, caption in enumerate(captions):
            tokens = tokenizer(
                caption, max_length=MAX_LENGTH, padding="max_length", truncation=True, return_tensors="pt"
            )
            feature = model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
            np.savez_compressed(
                dest / f"{number:08d}.npz",
                caption_feature=feature.half().numpy(),
                attention_mask=tokens.attention_mask.short().numpy(),
            )
    return time.perf_counter() - start


def ours(folder: Path, table: Path, dest: Path) -> tuple[float, Path]:
    """Seconds of the whole job, but for loading the model, which the other loop does not count either."""
    start = time.perf_counter()
    result = latentmill.pixart(table, dest, text_encoder=str(folder)).text["prompt"]
    print(
        f"  whole call {time.perf_counter() - start:.2f} s, first batch to last commit {result.running_seconds:.2f} s"
    )
    return result.running_seconds, result.dest


def bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("[0-9]*.npz"))


def check_equal(theirs: Path, mine: Path) -> float:
    """The largest difference at real tokens, relative to the largest value. Raises where masks or shapes differ."""
    worst = 0.0
    for file in sorted(theirs.glob("*.npz")):
        reference = np.load(file)
        real = int(reference["attention_mask"].sum())
        found = PixArtText("multi").from_bytes((mine / file.name).read_bytes()).astype(np.float32)
        expected = reference["caption_feature"][0, :real].astype(np.float32)
        assert found.shape == expected.shape, (file, found.shape, expected.shape)
        worst = max(worst, float(np.abs(found - expected).max() / np.abs(expected).max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        make_model(root / "model", options.width, options.layers)
        captions = make_captions(root / "model", options.captions)
        table = root / "data_info.json"
        rows = [{"path": f"{n:08d}.png", "prompt": caption} for n, caption in enumerate(captions)]
        table.write_text(json.dumps(rows))
        ratios = []
        for number in range(options.rounds):
            their_seconds = one_at_a_time(root / "model", captions, root / f"theirs{number}")
            our_seconds, mine = ours(root / "model", table, root / f"ours{number}")
            worst = check_equal(root / f"theirs{number}", mine)
            ratios.append(their_seconds / our_seconds)
            space = bytes_of(root / f"theirs{number}") / bytes_of(mine)
            print(
                f"round {number}: theirs {their_seconds:.2f} s, ours {our_seconds:.2f} s, {ratios[-1]:.1f} times as "
                f"fast, {space:.1f} times smaller, largest difference {worst:.1e}",
                flush=True,
            )
    print(f"median {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) times as fast")


if __name__ == "__main__":
    main()

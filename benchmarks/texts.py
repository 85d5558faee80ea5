"""Text features against what they replace: one caption at a time, padded to 300, in the same model and threads.

A T5 encoder of random weights costs the time of a real one. Captions have COCO's lengths: about 10.5 words (2.4), here
of one token each.
"""

from __future__ import annotations

import json
import time
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from converting import fresh
from harness import DifferentError, Section, Setting, Took, check_same_numbers, in_turn, ratios, spread, times, walls

WORDS_MEAN, WORDS_DEVIATION, MAX_LENGTH = 10.5, 2.4, 300
WIDTH, LAYERS = 512, 6
GOAL = "at least 10x"
SAME = 2e-3  # of the largest value: both are stored as float16


def run(setting: Setting) -> Section:
    import torch

    torch.set_num_threads(setting.workers)
    folder, count = setting.folder("text-model"), setting.count(200, 48)
    make_model(folder)
    captions = make_captions(folder, count)
    table = setting.work / "data_info.json"
    table.write_text(json.dumps([{"path": f"{n:08d}.png", "prompt": text} for n, text in enumerate(captions)]))
    theirs, ours = setting.folder("text") / "theirs", setting.folder("text") / "ours"
    programs = {
        "theirs": lambda: one_at_a_time(folder, captions, fresh(theirs)),
        "ours": lambda: features(folder, table, fresh(ours), setting.workers),
    }
    for program in programs.values():
        program()
    worst = check_equal(theirs, next(ours.glob("caption_features*")))
    took = in_turn(programs, setting.count(min(3, setting.rounds), 1))
    space = size_of(theirs) / size_of(next(ours.glob("caption_features*")))
    section = Section(
        f"Text features of {count} captions of COCO's lengths, {setting.workers} threads",
        f"real tokens differ by at most {worst:.0e} of the largest value, masks and shapes not at all",
        ("model", "one at a time, s", "latentmill, s", "its time over latentmill's", "its bytes", "goal"),
    )
    section.add(
        f"T5 encoder, {LAYERS} layers of width {WIDTH}, random weights", spread(walls(took["theirs"])),
        spread(walls(took["ours"])), times(ratios(walls(took["theirs"]), walls(took["ours"]))), f"{space:.1f}x", GOAL,
    )  # fmt: skip
    section.notes.append(
        "one at a time: padded to 300 tokens, `savez_compressed`; from the first batch to the last commit, without "
        "loading the model, on both sides"
    )
    return section


def make_model(folder: Path) -> None:
    """A random T5 encoder beside the embedded tokenizer, in the hub's form."""
    import torch
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    with as_file(files("latentmill") / "assets" / "mini-t5" / "tokenizer") as tokenizer:
        T5TokenizerFast.from_pretrained(tokenizer).save_pretrained(folder / "tokenizer")
    config = T5Config(
        vocab_size=2048, d_model=WIDTH, d_kv=64, d_ff=4 * WIDTH, num_heads=WIDTH // 64, num_layers=LAYERS,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    torch.manual_seed(0)
    T5EncoderModel(config).save_pretrained(folder / "text_encoder")


def make_captions(folder: Path, count: int) -> list[str]:
    """Captions of words that are one token each, with COCO's number of words."""
    from transformers import T5TokenizerFast

    tokenizer = T5TokenizerFast.from_pretrained(folder / "tokenizer")
    words = [token[1:] for token in tokenizer.get_vocab() if token.startswith("▁") and token[1:].isalpha()]
    random = np.random.default_rng(0)
    lengths = np.clip(random.normal(WORDS_MEAN, WORDS_DEVIATION, count).round(), 7, 40).astype(int)
    return [" ".join(random.choice(sorted(words), length)) for length in lengths]


def one_at_a_time(folder: Path, captions: list[str], dest: Path) -> Took:
    """The scheme that is replaced: each caption alone, padded, written with savez_compressed."""
    import torch
    from transformers import T5EncoderModel, T5TokenizerFast

    tokenizer = T5TokenizerFast.from_pretrained(folder / "tokenizer")
    model = T5EncoderModel.from_pretrained(folder / "text_encoder").eval()
    dest.mkdir(parents=True)
    cpu, start = time.process_time(), time.perf_counter()
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
    return Took(time.perf_counter() - start, time.process_time() - cpu)


def features(folder: Path, table: Path, dest: Path, threads: int) -> Took:
    import latentmill

    settings: dict[str, Any] = {"text_encoder": str(folder), "threads": threads}
    result = latentmill.pixart(table, dest, **settings).text["prompt"]
    return Took(result.running_seconds, 0.0)


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("[0-9]*.npz"))


def check_equal(theirs: Path, ours: Path) -> float:
    """The largest difference at real tokens, of the largest value. Raises DifferentError."""
    from latentmill.formats.pixart import PixArtText

    names = sorted(file.name for file in theirs.glob("*.npz"))
    if names != sorted(file.name for file in ours.glob("[0-9]*.npz")):
        raise DifferentError(f"{ours} does not hold the same {len(names)} files")
    worst = 0.0
    for name in names:
        reference = np.load(theirs / name)
        real = int(reference["attention_mask"].sum())
        found = PixArtText("multi").from_bytes((ours / name).read_bytes()).astype(np.float32)
        expected = reference["caption_feature"][0, :real].astype(np.float32)
        worst = max(worst, check_same_numbers(found, expected, SAME, name))
    return worst

"""The reference `extract_features.py`'s command line, with its options, meanings and defaults, on latentmill's jobs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from latentmill.errors import ConfigError
from latentmill.guard import EXIT_REJECTS, guarded
from latentmill.terminal import Display, summarise

_MULTI_SCALE_SIZES, _SINGLE_SCALE_SIZES = (512, 1024, 2048, 2880), (256, 512)

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.command()
def _main(
    run_vae_feature_extract: Annotated[
        bool, typer.Option("--run_vae_feature_extract", help="Make VAE features.")
    ] = False,
    multi_scale: Annotated[bool, typer.Option("--multi_scale", help="Aspect buckets instead of squares.")] = False,
    img_size: Annotated[
        int, typer.Option("--img_size", help="256 or 512; with --multi_scale 512, 1024, 2048 or 2880.")
    ] = 512,
    dataset_root: Annotated[
        Path | None, typer.Option("--dataset_root", help="The InternData folder; images are in InternImgs.")
    ] = None,
    vae_json_file: Annotated[
        str | None, typer.Option("--vae_json_file", help="data_info.json, relative to --dataset_root.")
    ] = None,
    vae_models_dir: Annotated[
        str, typer.Option("--vae_models_dir", help="VAE: hub repository or folder.")
    ] = "madebyollin/sdxl-vae-fp16-fix",
    vae_save_root: Annotated[Path | None, typer.Option("--vae_save_root", help="Where the folder is made.")] = None,
    run_t5_feature_extract: Annotated[
        bool, typer.Option("--run_t5_feature_extract", help="Make text features.")
    ] = False,
    max_length: Annotated[int, typer.Option("--max_length", help="Tokens of every file, padded.")] = 300,
    t5_json_path: Annotated[
        Path | None, typer.Option("--t5_json_path", help="data_info.json, relative to the working directory.")
    ] = None,
    t5_models_dir: Annotated[
        str, typer.Option("--t5_models_dir", help="T5: hub repository or folder.")
    ] = "PixArt-alpha/PixArt-XL-2-1024-MS",
    caption_label: Annotated[str, typer.Option("--caption_label", help="Which caption.")] = "prompt",
    t5_save_root: Annotated[Path | None, typer.Option("--t5_save_root", help="Where the folder is made.")] = None,
    start_index: Annotated[int, typer.Option("--start_index", help="First row.")] = 0,
    end_index: Annotated[int, typer.Option("--end_index", help="Row before which to stop.")] = 50_000_000,
    save_path_suffix: Annotated[
        str, typer.Option("--save_path_suffix", help="Appended to the text features' folder, after a _.")
    ] = "",
) -> None:
    """VAE features and T5 features of a PixArt dataset, in the folders that its trainer reads."""
    options = dict(locals())

    def jobs() -> int:
        chosen: list[tuple[str, str, Callable[[], dict[str, Any]]]] = []
        if run_t5_feature_extract:
            chosen.append((f"captions {caption_label}", "captions", lambda: _text_settings(options)))
        if run_vae_feature_extract:
            chosen.append(("images", "images", lambda: _image_settings(options)))
        if not chosen:
            raise ConfigError("nothing to do: give --run_vae_feature_extract, --run_t5_feature_extract or both")
        settings = [each() for _, _, each in chosen]  # refuse both before the first begins
        rejected = sum(_run(name, what, own) for (name, what, _), own in zip(chosen, settings, strict=True))
        return EXIT_REJECTS if rejected else 0

    guarded(jobs)


def _run(name: str, what: str, settings: dict[str, Any]) -> int:
    from latentmill.caption_features import text_features
    from latentmill.vae_features import image_features

    run = image_features if what == "images" else text_features
    with Display(name) as display:
        result = run(tell=display.tell, wait=True, missing_caption="empty", **settings)
    summarise(name, result, Path(), what)
    return result.rejected


def _image_settings(options: dict[str, Any]) -> dict[str, Any]:
    root = _needed(options, "dataset_root", "--run_vae_feature_extract")
    sizes = _MULTI_SCALE_SIZES if options["multi_scale"] else _SINGLE_SCALE_SIZES
    if options["img_size"] not in sizes:
        kind = "with" if options["multi_scale"] else "without"
        raise ConfigError(
            f"--img_size {kind} --multi_scale must be {', '.join(map(str, sizes))}. Found: {options['img_size']}"
        )
    return {
        "data_info": root / _needed(options, "vae_json_file", "--run_vae_feature_extract"),
        "images": Path(str(root).replace("InternData", "InternImgs")),
        "dest": _needed(options, "vae_save_root", "--run_vae_feature_extract"),
        "vae": options["vae_models_dir"],
        "resolution": options["img_size"],
        "multi_scale": options["multi_scale"],
        "start_index": options["start_index"],
        "end_index": options["end_index"],
    }


def _text_settings(options: dict[str, Any]) -> dict[str, Any]:
    return {
        "data_info": _needed(options, "t5_json_path", "--run_t5_feature_extract"),
        "dest": _needed(options, "t5_save_root", "--run_t5_feature_extract"),
        "text_encoder": options["t5_models_dir"],
        "label": options["caption_label"],
        "max_length": options["max_length"],
        "pad": True,
        "suffix": options["save_path_suffix"],
        "start_index": options["start_index"],
        "end_index": options["end_index"],
    }


def _needed(options: dict[str, Any], name: str, job: str) -> Any:
    if options[name] is None:
        raise ConfigError(f"{job} needs --{name}")
    return options[name]


def extract_features() -> None:
    """Run the drop-in's command line."""
    sys.argv[0] = "extract_features.py"
    app()

"""The reference `extract_features.py`'s command line, with its options, meanings and defaults, on latentmill's jobs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentmill.errors import ConfigError, LatentmillError
from latentmill.guard import begun, feature_shown, guarded, importing, run_program, run_recipes

if TYPE_CHECKING:
    from latentmill.recipe import Recipe

_FOREIGN_OPTION = re.compile(r"--[a-z]+(-[a-z]+)*\b(?!_)")
_HINT = "such options are those of `latentmill pixart`, which goes on with the same folders"
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
    begun()

    def work() -> int:
        recipes = []
        if run_t5_feature_extract:
            recipes.append(_text_recipe(options))
        if run_vae_feature_extract:
            recipes.append(_image_recipe(options))
        if not recipes:
            raise ConfigError("nothing to do: give --run_vae_feature_extract, --run_t5_feature_extract or both")
        try:
            return run_recipes(recipes, feature_shown)
        except LatentmillError as error:
            if _FOREIGN_OPTION.search(str(error)):
                raise LatentmillError(f"{error} ({_HINT})") from error
            raise

    guarded(work)


def _recipe(data_info: Path, dest: Path, options: dict[str, Any], **settings: Any) -> Recipe:
    with importing():
        from latentmill.features import feature_recipe

    rows: dict[str, Any] = {"start_index": options["start_index"], "end_index": options["end_index"]}
    common: dict[str, Any] = {"wait": True, "missing_caption": "empty", "max_failures": "100%"}
    recipe, _ = feature_recipe(data_info, dest, **common, **rows, **settings)
    return recipe


def _image_recipe(options: dict[str, Any]) -> Recipe:
    root = _needed(options, "dataset_root", "--run_vae_feature_extract")
    sizes = _MULTI_SCALE_SIZES if options["multi_scale"] else _SINGLE_SCALE_SIZES
    if options["img_size"] not in sizes:
        kind = "with" if options["multi_scale"] else "without"
        raise ConfigError(
            f"--img_size {kind} --multi_scale must be one of {', '.join(map(str, sizes))}. Found: {options['img_size']}"
        )
    return _recipe(
        root / _needed(options, "vae_json_file", "--run_vae_feature_extract"),
        _needed(options, "vae_save_root", "--run_vae_feature_extract"),
        options,
        images=Path(str(root).replace("InternData", "InternImgs")),
        vae=options["vae_models_dir"],
        resolution=options["img_size"],
        multi_scale=options["multi_scale"],
    )


def _text_recipe(options: dict[str, Any]) -> Recipe:
    reader = "multi" if options["multi_scale"] else "single"
    return _recipe(
        _needed(options, "t5_json_path", "--run_t5_feature_extract"),
        _needed(options, "t5_save_root", "--run_t5_feature_extract"),
        options,
        text_encoder=options["t5_models_dir"],
        caption_label=options["caption_label"],
        caption_columns=[options["caption_label"]],
        max_length=options["max_length"],
        pad=True,
        images_reader=reader if options["run_vae_feature_extract"] else None,
        suffix=options["save_path_suffix"],
    )


def _needed(options: dict[str, Any], name: str, job: str) -> Any:
    if options[name] is None:
        raise ConfigError(f"{job} needs --{name}")
    return options[name]


def main() -> None:
    """Run the drop-in's command line."""
    sys.argv[0] = "extract_features.py"
    run_program(app)

"""The parts of a first recipe as `init` writes it; {} are filled in by `recipe_init`."""

HEAD = """\
# {images}.
# `latentmill plan` shows what this recipe would do, `latentmill run` does it: again later, only what is new or changed.
# Paths are relative to this file. Any setting can be given with the command instead: --set outputs.NAME.SETTING=VALUE

{dest}                      # every output becomes a folder here, of its name or `path`

[source]
{path}
{found}{turned}
# alpha = "white"                  # what lies behind transparent pixels; default: transparency is dropped
# max_images = 100                 # a trial

[run]
# device = "cuda"                  # default: the GPU where there is one
# max_failures = "10%"             # stop when more images than this cannot be used
"""

AS_STORED = (
    '# exif = "apply"                   # turn photos upright that their camera says are turned; default: as stored'
)
UPRIGHT = (
    'exif = "apply"                     # {count} of {looked} looked at are turned by their camera; "ignore": as stored'
)

MISSING = """\
missing_caption = "empty"          # for {images} without a caption; "reject" leaves them out of the text
"""

CLASSES = """\
# Cropped pixels, as EDM2 and REPA trainers read them: numbered PNGs, and the class of each by its top folder.
[outputs.images]
kind = "pixels"
transform = "center-crop-dhariwal" # the crop of ADM and DiT
resolution = "{side}x{side}"

# Latents of a VAE, in the same pass: mean and deviation, of which a trainer draws a fresh sample every time.
[outputs.vae-sd]
kind = "latents"
model = "sd-vae-ft-mse"            # `latentmill models` lists others; "mini" needs no download, for trying only
transform = "center-crop-dhariwal"
resolution = "{side}x{side}"
# pixel_range = "0,1"              # as EDM2 feeds its VAE; default: "-1,1" (REPA, SiT, DiT)
# flip = "both"                    # the mirrored images too, in vae-sd-flip
# dtype = "bfloat16"               # on a GPU

# Features of a vision encoder, for REPA's alignment loss.
# [outputs.dinov2]
# kind = "vision"
# model = "dinov2-vitb14"
# input = "repa"                   # resized as REPA does, so that patches lie where the latents' do
# save_dtype = "float16"
# transform = "center-crop-dhariwal"
# resolution = "{side}x{side}"
"""

CAPTIONS = """\
# Latents in aspect buckets, named by the images' paths, as PixArt-Sigma reads them.
[outputs.latents]
kind = "latents"
layout = "pixart"
# path = "{latents}"  # where PixArt's trainer looks, in {data}
model = "sdxl-vae-fp16-fix"        # `latentmill models` lists others; "mini" needs no download, for trying only
resolution = {side}
multi_scale = true                 # aspect buckets; without it, squares
buckets = "grid"                   # or "reference" (PixArt's own, from 512 on), "auto:12" (fitted to these images)
fit = "cover"                      # scaled to cover the bucket and cropped; PixArt's own is "stretch"{reader}
# flip = "both"                    # the mirrored images too, in latents-flip
# dtype = "bfloat16"               # on a GPU

# Text features of the captions, trimmed to their real tokens, and of the empty caption.
[outputs.text]
kind = "text"
# path = "{text}"
model = "pixart-sigma-t5"          # or a set, an output for each of its encoders: "sd3", "flux.1", "sana", "qwen-image"
{label}{others}{reader}
# dtype = "bfloat16"               # on a GPU: half of the 19 GB
"""

NO_NAMES = """\
# There are captions, but features that are named as the images are would be refused:
# {why}
# Rename the files or make a copy that has such names: `latentmill import`. Until then, by number, without captions:
"""

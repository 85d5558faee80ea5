"""The kinds of finding: how bad each is, how a person is told of it, and what can be done about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["unusable", "look", "info"]
SEVERITIES: dict[Severity, str] = {
    "unusable": "unusable: a run would reject these",
    "look": "worth a look",
    "info": "for information",
}

EMPTY, NO_IMAGE, DAMAGED, TOO_LARGE, UNREADABLE = (
    "empty-file",
    "not-an-image",
    "damaged",
    "too-many-pixels",
    "unreadable",
)
OTHER_SIZE, NO_CAPTION = "other-size", "no-caption"
WRONG_EXTENSION, NOT_LISTED, TINY, EXTREME, UPSCALED = (
    "wrong-extension",
    "not-listed",
    "tiny",
    "extreme-shape",
    "upscaled",
)
SAME_BYTES, SAME_PIXELS, NEAR = "same-bytes", "same-pixels", "near"
TWO_CLASSES, TWO_CAPTIONS, FEW_IMAGES = "two-classes", "two-captions", "few-images"
EXIF_ROTATED, COLOUR_PROFILE, CMYK, ANIMATED = "exif-rotated", "colour-profile", "cmyk", "animated"
TRANSPARENT, GREY, SIXTEEN_BIT = "transparent", "grey", "16-bit"
SAME_CAPTION, BOILERPLATE, LONG_CAPTION = "same-caption", "boilerplate", "long-caption"
MOJIBAKE, MARKUP, SAME_STEM, SAME_NAME = "mojibake", "markup", "same-stem", "same-name"


@dataclass(frozen=True)
class Kind:
    """A kind of finding. told: what it is, of any number of `unit`. advice: what it means, and what to do."""

    name: str
    severity: Severity
    told: str
    advice: str
    unit: str = "images"


KINDS = {
    kind.name: kind
    for kind in (
        Kind(EMPTY, "unusable", "empty file", "Download or copy them again."),
        Kind(NO_IMAGE, "unusable", "not an image that can be read", "Look at what they are: a web page, a video?"),
        Kind(DAMAGED, "unusable", "damaged or cut off", "Download or copy them again."),
        Kind(TOO_LARGE, "unusable", "more pixels than --max-pixels", "Scale them down, or raise the limit."),
        Kind(UNREADABLE, "unusable", "cannot be read", "Look at the reason: a permission, a link to nothing?"),
        Kind(
            OTHER_SIZE, "unusable", "another size than the table says",
            "Bucketed latents reject them: correct width and height in the table, or leave them out of it.",
        ),
        Kind(
            NO_CAPTION, "unusable", "no caption that can be used (runs without captions take them)",
            "Imports and text features reject them: write one, use --missing-caption empty, or leave them out with "
            "--list-also no-caption. Pixels and latents alone are made of them all the same.",
        ),
        Kind(SAME_BYTES, "look", "the same file, byte for byte", "Keep one of each.", "groups"),
        Kind(SAME_PIXELS, "look", "the same pixels in different files", "Keep one of each.", "groups"),
        Kind(
            NEAR, "look", "look alike (encoded or resized again, or cropped a little)",
            "Look at them: a model learns by heart what it sees many times.", "groups",
        ),
        Kind(TWO_CLASSES, "look", "copies of an image in several classes", "Decide on one class.", "groups"),
        Kind(TWO_CAPTIONS, "look", "copies of an image with different captions", "Keep the better one.", "groups"),
        Kind(
            WRONG_EXTENSION, "look", "another format than the name says",
            "They are read by content, so a run takes them; other programs may not.",
        ),
        Kind(
            NOT_LISTED, "look", "a picture, but of a format that is not read here: no run lists it",
            "Convert them to JPEG or PNG first.", "files",
        ),
        Kind(TINY, "look", "tiny", "A crop of them is blurred: leave them out."),
        Kind(
            EXTREME, "look", "one side is more than four times the other",
            "A square crop shows little of them, and no bucket of the usual tables fits.",
        ),
        Kind(UPSCALED, "look", "smaller than --resolution, would be enlarged", "Lower it, or leave them out."),
        Kind(
            EXIF_ROTATED, "look", "stored turned, as EXIF says",
            'Use --exif apply (exif = "apply" in a recipe) to have them upright.',
        ),
        Kind(
            COLOUR_PROFILE, "look", "a colour profile other than sRGB",
            "Profiles are not applied: colours are a little off. Convert them to sRGB where that matters.",
        ),
        Kind(CMYK, "look", "CMYK", "They are converted without their profile, so colours are off."),
        Kind(ANIMATED, "look", "several pictures in one file", "The first one is taken."),
        Kind(SAME_CAPTION, "look", "shared by several images", "A caption that fits many says little.", "captions"),
        Kind(BOILERPLATE, "look", "begins or ends many captions", "Cut them: a model learns them too.", "phrases"),
        Kind(LONG_CAPTION, "look", "a caption that would be cut off", "Shorten them, or raise --max-length."),
        Kind(MOJIBAKE, "look", "a caption that was decoded wrongly", "ftfy mends most; see what it would make."),
        Kind(MARKUP, "look", "a caption with HTML or an address in it", "Clean them."),
        Kind(
            SAME_STEM, "look", "names that differ in their extension alone",
            "They share one caption file, and their features would be one file: rename one.", "groups",
        ),
        Kind(
            SAME_NAME, "look", "names that differ only in case or Unicode form",
            "On other systems they are one file: rename one.", "groups",
        ),
        Kind(TRANSPARENT, "info", "transparency", "By default it is dropped; see --alpha."),
        Kind(GREY, "info", "grey", "They become RGB of three equal channels."),
        Kind(SIXTEEN_BIT, "info", "16 bits a channel", "They become 8 bits."),
        Kind(FEW_IMAGES, "info", "few images", "See them in the list of classes.", "classes"),
    )
}  # fmt: skip

CAPTION_KINDS = (NO_CAPTION, SAME_CAPTION, LONG_CAPTION, MOJIBAKE, MARKUP)
GROUPS_OF_COPIES = (SAME_BYTES, SAME_PIXELS)  # of each group one is kept
ALSO = {  # names that --list-also takes beside the kinds' own
    "captions": CAPTION_KINDS,
    "shapes": (TINY, EXTREME, UPSCALED),
    "near": (NEAR,),
}


def unusable_kind(reason: str) -> str:
    """The kind of a reject, by its reason."""
    beginnings = {"the file is empty": EMPTY, "not an image": NO_IMAGE, "the image is damaged": DAMAGED}
    for beginning, kind in beginnings.items():
        if reason.startswith(beginning):
            return kind
    if "over the limit of" in reason:
        return TOO_LARGE
    return DAMAGED if reason.startswith("the image has no pixels") else UNREADABLE

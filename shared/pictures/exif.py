"""What a photograph says of itself, carried from the file that is read to the one that is written."""

from __future__ import annotations

from PIL import ExifTags, Image

ORIENTATION = ExifTags.Base.Orientation
# Of the file's first directory: the rest describes how that file stores its pixels, or shows the picture as it was.
_CARRIED = """
    DocumentName ImageDescription Make Model Software DateTime Artist Copyright Rating ImageHistory
    XPTitle XPComment XPAuthor XPKeywords XPSubject ExifOffset GPSInfo
"""
_SOFTWARE, _HISTORY = ExifTags.Base.Software, ExifTags.Base.ImageHistory
_SIZES = (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)  # of the picture before it was enlarged


def carried_exif(image: Image.Image) -> tuple[bytes, str]:
    """Returns the EXIF to carry, without the file's structure and orientation; with a note where it cannot be read."""
    try:
        found = image.getexif()
        kept = Image.Exif()
        for name in _CARRIED.split():
            tag = ExifTags.Base[name]
            if int(tag) in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
                inner = {key: value for key, value in found.get_ifd(tag).items() if key not in _SIZES}
                if inner:
                    kept[tag] = inner
            elif tag in found:
                kept[tag] = found[tag]
        return (kept.tobytes() if len(kept) else b""), ""
    except Exception:  # cameras and editors write it in every state of repair
        return b"", "its EXIF is damaged and was left out"


def with_history(exif: bytes, *, software: str, history: str) -> bytes:
    """Returns the EXIF with what was done: the program, and a text (ASCII) in ImageHistory."""
    made = Image.Exif()
    if exif:
        made.load(exif)
    for tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):  # read now: `tobytes` would take the old bytes' offsets
        if tag in made:
            made[tag] = dict(made.get_ifd(tag))
    made[_SOFTWARE], made[_HISTORY] = software, history
    return made.tobytes()

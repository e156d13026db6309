"""Converts an SVG picture to PNG, with resvg and a font of `cotenant[plot]`."""

from typing import Final

NEEDED: Final = ("resvg_py", "font_source_sans_pro")
"""What `cotenant[plot]` installs."""
_FAMILY: Final = "Source Sans Pro"
_FACES: Final = ("SourceSansPro", "SourceSansProBold")
_SCALE: Final = 2
"""Pixels per unit of the drawing, for high-density screens."""
_LAST_LETTER: Final = "ſ"
_SIGNS: Final = frozenset("…–×")


def png(picture: str) -> bytes:
    """Draw an SVG picture in its light colours, twice as large.

    Text uses the bundled font, so that it looks the same on every machine. The machine's fonts are used only
    if the bundled one may lack a letter. Raises ImportError without the extra.
    """
    from font_source_sans_pro import font_files_ttf
    from resvg_py import svg_to_bytes

    own = all(letter <= _LAST_LETTER or letter in _SIGNS for letter in picture)
    return svg_to_bytes(
        svg_string=picture,
        zoom=_SCALE,
        skip_system_fonts=own,
        sans_serif_family=_FAMILY,
        font_files=[font_files_ttf[face] for face in _FACES],
    )

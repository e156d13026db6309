"""An SVG picture as PNG, by resvg and with a font, which come with `cotenant[plot]`."""

from __future__ import annotations

from typing import Final

NEEDED: Final = ("resvg_py", "font_source_sans_pro")
"""What `cotenant[plot]` installs."""
_FAMILY: Final = "Source Sans Pro"
_FACES: Final = ("SourceSansPro", "SourceSansProBold")
_SHARP: Final = 2
"""Pixels to a unit of the drawing: sharp on screens of twice the density too."""
_LAST_LETTER: Final = "ſ"
_SIGNS: Final = frozenset("…–×")


def png(picture: str) -> bytes:
    """Draw an SVG picture in its light colours, twice as large.

    Words are in the extra's own font, so that they are there on a machine without any, and the same on all;
    only where a letter may not be in it are the machine's fonts asked. Raises ImportError without the extra.
    """
    from font_source_sans_pro import font_files_ttf
    from resvg_py import svg_to_bytes

    own = all(letter <= _LAST_LETTER or letter in _SIGNS for letter in picture)
    return svg_to_bytes(
        svg_string=picture,
        zoom=_SHARP,
        skip_system_fonts=own,
        sans_serif_family=_FAMILY,
        font_files=[font_files_ttf[face] for face in _FACES],
    )

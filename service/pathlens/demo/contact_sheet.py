"""One picture of many explanations: each input beside its overlay."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIDE = 128
GAP = 12
CAPTION = 34
COLUMNS = 4


@dataclass(frozen=True)
class Cell:
    """One image with what was said of it."""

    image: Path
    overlay_png: bytes
    caption: str


def draw_contact_sheet(cells: Sequence[Cell], path: Path) -> None:
    """Draw inputs and overlays side by side, four pairs in a row, and write them as a PNG."""
    rows = -(-len(cells) // COLUMNS)
    width, height = 2 * SIDE + 2 * GAP, SIDE + CAPTION + GAP
    sheet = Image.new("RGB", (COLUMNS * width + GAP, rows * height + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for number, cell in enumerate(cells):
        left, top = number % COLUMNS * width + GAP, number // COLUMNS * height + GAP
        for offset, picture in ((0, Image.open(cell.image)), (SIDE + GAP // 2, Image.open(BytesIO(cell.overlay_png)))):
            with picture:
                # Small digits show their pixels; nothing is smoothed over.
                enlarged = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left + offset, top))
        draw.text((left, top + SIDE + 4), cell.caption, fill="black", font=font)
    sheet.save(path)

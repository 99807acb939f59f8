"""One picture of many answers: every image small, its answer below it, mistakes framed in red."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from alexnet_client.errors import BadInput
from alexnet_client.evaluate import Answered
from alexnet_client.images import load_pixels

THUMB, GAP, TEXT, COLUMNS = 96, 8, 30, 12
RIGHT, WRONG, PAPER, FONT_SIZE = "#2e7d32", "#c62828", "white", 13


def draw_sheet(answered: Sequence[Answered], path: Path) -> None:
    """Write the picture as PNG; mistakes come first. Raises ``BadInput`` if it cannot be written."""
    ordered = sorted(answered, key=lambda one: one.right)
    columns = min(COLUMNS, len(ordered))
    rows = -(-len(ordered) // columns)
    cell_width, cell_height = THUMB + GAP, THUMB + GAP + TEXT
    sheet = Image.new("RGB", (columns * cell_width + GAP, rows * cell_height + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_SIZE)
    for place, one in enumerate(ordered):
        x, y = GAP + place % columns * cell_width, GAP + place // columns * cell_height
        colour = RIGHT if one.right else WRONG
        pen.rectangle((x - 3, y - 3, x + THUMB + 2, y + THUMB + 2), fill=colour)
        sheet.paste(Image.fromarray(load_pixels(one.path)).resize((THUMB, THUMB)), (x, y))
        said = f"{one.answer.label} {one.answer.probability:.0%}"
        pen.text((x, y + THUMB + 3), said, fill=colour, font=font)
        if not one.right:
            pen.text((x, y + THUMB + 16), f"truth: {one.truth}", fill=colour, font=font)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, "PNG")
    except OSError as error:
        raise BadInput(f"{path}: the picture cannot be written there ({error.strerror})") from None

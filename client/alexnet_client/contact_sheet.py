"""A contact sheet: one picture of all evaluated images with their results, errors in red."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from alexnet_client.evaluate import EvaluatedImage
from alexnet_client.files import replace_file
from alexnet_client.images import load_pixels

THUMB, GAP, TEXT, COLUMNS = 96, 8, 30, 12
CORRECT, WRONG, PAPER, FONT_SIZE = "#2e7d32", "#c62828", "white", 13


def draw_contact_sheet(images: Sequence[EvaluatedImage], path: Path) -> None:
    """Write the contact sheet as PNG, errors first. Raises ``BadInput`` if it cannot be written."""
    ordered = sorted(images, key=lambda each: each.correct)
    columns = min(COLUMNS, len(ordered))
    rows = -(-len(ordered) // columns)
    cell_width, cell_height = THUMB + GAP, THUMB + GAP + TEXT
    sheet = Image.new("RGB", (columns * cell_width + GAP, rows * cell_height + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_SIZE)
    for place, each in enumerate(ordered):
        x, y = GAP + place % columns * cell_width, GAP + place // columns * cell_height
        colour = CORRECT if each.correct else WRONG
        draw.rectangle((x - 3, y - 3, x + THUMB + 2, y + THUMB + 2), fill=colour)
        sheet.paste(Image.fromarray(load_pixels(each.path)).resize((THUMB, THUMB)), (x, y))
        text = f"{each.result.label} {each.result.probability:.0%}"
        draw.text((x, y + THUMB + 3), text, fill=colour, font=font)
        if not each.correct:
            draw.text((x, y + THUMB + 16), f"truth: {each.truth}", fill=colour, font=font)
    with replace_file(path) as temporary:
        sheet.save(temporary, "PNG")

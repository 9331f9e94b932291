"""Grids of images with their prompts."""

import torch
from PIL import Image, ImageDraw, ImageFont

COLUMNS = 12


def grid(images: torch.Tensor, prompts: list[str], title: str, cell: int = 128) -> Image.Image:
    """Return a grid of images (n, 3, h, w) in [0, 1], row by row, each above its prompt."""
    font, small = ImageFont.load_default(size=17), ImageFont.load_default(size=12)
    top, gap, words = 34, 8, 34
    rows = -(-len(images) // COLUMNS)
    canvas = Image.new("RGB", (gap + COLUMNS * (cell + gap), top + rows * (cell + words + gap)), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((gap, 8), title, fill="#555555", font=font)
    for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        x, y = gap + i % COLUMNS * (cell + gap), top + i // COLUMNS * (cell + words + gap)
        shown = Image.fromarray(image.permute(1, 2, 0).mul(255).round().byte().numpy())
        canvas.paste(shown.resize((cell, cell), Image.Resampling.BICUBIC), (x, y))
        lines = [""]
        for word in prompt.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and draw.textlength(longer, font=small) > cell:
                lines.append(word)
            else:
                lines[-1] = longer
        text = "\n".join(lines[:2])
        draw.multiline_text((x + cell / 2, y + cell + 2), text, "black", small, anchor="ma", align="center", spacing=1)
    return canvas

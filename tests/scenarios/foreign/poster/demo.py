import io
import time

import gradio as gr
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

PALETTES = {
    "Riso": ["#f7f3e8", "#ff5c39", "#0078bf", "#2b2b2b"],
    "Forest": ["#f1f4e4", "#a3b565", "#3b6b4a", "#16261d"],
    "Night": ["#f2e9e4", "#c9ada7", "#4a4e69", "#22223b"],
    "Newspaper": ["#ffffff", "#111111"],
}
BAYER = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]) / 16.0 - 0.5


def rgb(color):
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))


def sample_image(size=384):
    """A sunset, so that there is something to play with before you upload a photo."""
    y, x = np.mgrid[0:size, 0:size] / size
    sky = np.stack([255 - 60 * y, 190 - 130 * y, 120 + 60 * y], axis=-1)
    sun = np.hypot(x - 0.6, y - 0.45) < 0.14
    sky[sun] = [255, 225, 120]
    picture = Image.fromarray(sky.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    rng = np.random.default_rng(7)
    for base, shade in ((0.62, 90), (0.74, 60), (0.86, 30)):
        ridge = base + np.cumsum(rng.normal(0, 0.012, 33))
        points = [(i * size / 32, h * size) for i, h in enumerate(ridge)]
        draw.polygon([(0, size), *points, (size, size)], fill=(shade, shade + 10, shade + 30))
    return picture.filter(ImageFilter.SMOOTH)


def nearest(pixels, palette):
    distance = ((pixels[:, :, None, :] - palette[None, None]) ** 2).sum(axis=-1)
    return palette[distance.argmin(axis=-1)]


def ordered(pixels, palette, strength):
    height, width, _ = pixels.shape
    pattern = np.tile(BAYER, (height // 4 + 1, width // 4 + 1))[:height, :width]
    return nearest(pixels + pattern[:, :, None] * 160 * strength, palette)


def diffused(pixels, palette, strength):
    """Floyd-Steinberg, row by row. Slow in Python, fine for a poster of this size."""
    work = pixels.copy()
    height, width, _ = work.shape
    for row in range(height):
        for col in range(width):
            old = work[row, col].copy()
            new = palette[((palette - old) ** 2).sum(axis=1).argmin()]
            work[row, col] = new
            error = (old - new) * strength
            if col + 1 < width:
                work[row, col + 1] += error * 7 / 16
            if row + 1 < height:
                work[row + 1, col] += error * 5 / 16
                if col > 0:
                    work[row + 1, col - 1] += error * 3 / 16
                if col + 1 < width:
                    work[row + 1, col + 1] += error * 1 / 16
    return work


def make_poster(picture, palette_name, method, strength, width):
    if picture is None:
        raise gr.Error("Upload a picture first")
    started = time.perf_counter()
    height = max(1, round(picture.height * width / picture.width))
    small = picture.convert("RGB").resize((int(width), height), Image.Resampling.LANCZOS)
    palette = np.array([rgb(c) for c in PALETTES[palette_name]], dtype=float)
    pixels = np.asarray(small, dtype=float)
    if method == "Ordered":
        result = ordered(pixels, palette, strength)
    elif method == "Diffused":
        result = diffused(pixels, palette, strength)
    else:
        result = nearest(pixels, palette)
    poster = Image.fromarray(result.clip(0, 255).astype(np.uint8))
    poster = poster.resize((poster.width * 3, poster.height * 3), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    poster.save(buffer, "PNG", optimize=True)
    took = time.perf_counter() - started
    return poster, f"{poster.width} × {poster.height}, {buffer.tell() / 1024:.0f} kB as PNG, {took:.2f} s"


with gr.Blocks(title="Poster") as demo:
    gr.Markdown("# Poster\nTurns a photo into a print with very few inks.")
    with gr.Row():
        with gr.Column():
            source = gr.Image(value=sample_image(), type="pil", label="Photo")
            inks = gr.Dropdown(list(PALETTES), value="Riso", label="Inks")
            how = gr.Radio(["Flat", "Ordered", "Diffused"], value="Ordered", label="Dots")
            amount = gr.Slider(0.0, 1.0, value=0.7, step=0.05, label="Strength")
            across = gr.Slider(48, 240, value=128, step=8, label="Dots across")
            button = gr.Button("Print", variant="primary")
        with gr.Column():
            output = gr.Image(label="Poster", type="pil", format="png")
            note = gr.Markdown()
    button.click(make_poster, [source, inks, how, amount, across], [output, note], api_name="print")
    demo.load(make_poster, [source, inks, how, amount, across], [output, note])

if __name__ == "__main__":
    demo.launch()

"""A gigabyte without a line's end, with bytes that are no text, then an error."""

import os

piece = bytes(range(128, 256)) * 8192
for _ in range(1024):
    os.write(1, piece)
os.write(2, b"\x1b[31mred\x1b[0m \xff\x00 \x1b]0;title\x07")
raise ValueError("after the \x1b[1mnoise\x1b[0m")

"""Picture files, made for tests."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def png(width, height, rows=b""):
    """A PNG whose header may lie."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def npy(header, content=b""):
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def saved(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def animation(kind):
    """Three pictures in a file: an animation, or the pages of a TIFF. The first is black."""
    file = io.BytesIO()
    frames = [Image.fromarray(np.full((5, 5), shade, np.uint8)) for shade in (0, 100, 200)]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()

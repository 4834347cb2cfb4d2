"""Image files, written by another library."""

import io

from PIL import Image


def file_of(array, kind="PNG", **options):
    """The file of a `(rows, cols)` or `(rows, cols, channels)` array, 8 or 16 bit."""
    content = io.BytesIO()
    Image.fromarray(array).save(content, kind, **options)
    return content.getvalue()

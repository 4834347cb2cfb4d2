"""Pure functions on tensors: no Keras object, no state, no file.

Every tensor is `(batch, *spatial, channels)` with 1, 2 or 3 spatial axes in the order (plane, row, col); pixels are
counted from the centre of each grid (`geometry`), values may have any range.
"""

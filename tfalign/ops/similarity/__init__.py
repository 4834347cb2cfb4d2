"""Score maps: the similarity of two grids at every whole-pixel shift of a window, normalised by the overlap."""

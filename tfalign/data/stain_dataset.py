"""`tfds.load("tfalign_stain")`: misaligned patches of real tissue with their truth, for TensorFlow Datasets.

Imported, and so registered, by `import tfalign.data` where TensorFlow Datasets is installed (extra `datasets`).
"""

import numpy as np
import tensorflow_datasets as tfds

from tfalign.data import misalign, stain

SIZE = 64  # pixels a side of an input
MARGIN = 8  # more pixels on each side of a label
LABEL_SHAPE = (SIZE + 2 * MARGIN, SIZE + 2 * MARGIN)
# Rows of the picture, so that no pixel is in two splits; the last ones are those held out in `tfalign.data.stain`.
ROWS = {"train": (0, 224), "validation": (224, stain.TRAIN_ROWS), "test": (stain.TRAIN_ROWS, 512)}

MISALIGNMENTS = {
    "whole_pixel": (
        "every label moved by its own whole-pixel shift of up to 8 pixels on each axis",
        lambda count, seed: misalign.draw_shifts(count, rank=2, max_shift=8, paired=True, seed=seed),
    ),
    "aligned": (
        "every label where it belongs",
        lambda count, seed: misalign.draw_shifts(count, rank=2, max_shift=0, seed=seed),
    ),
    "subpixel": (
        "Gaussian shifts with a standard deviation of 8/3 pixels, cut at 8",
        lambda count, seed: misalign.draw_gaussian_shifts(count, rank=2, sigma=8 / 3, paired=True, seed=seed),
    ),
    "biased": (
        "whole-pixel shifts of up to 5 pixels about a mean of 3 pixels down and right",
        lambda count, seed: misalign.draw_shifts(count, rank=2, max_shift=5, mean=3, paired=True, seed=seed),
    ),
    "rotation": (
        "rotations of up to 5 degrees about the centre",
        lambda count, seed: misalign.draw_rotations(count, rank=2, max_rotation=5.0, paired=True, seed=seed),
    ),
    "affine": (
        "shifts of up to 4 pixels, rotations of up to 3 degrees, scales within 1.04 and shears of up to 2 degrees",
        lambda count, seed: misalign.draw_affine(
            count, rank=2, max_shift=4, max_rotation=3, max_scale=0.04, max_shear=2, paired=True, seed=seed
        ),
    ),
    "elastic": (
        "smooth displacements with an RMS of 2 pixels and a correlation length of 24",
        lambda count, seed: misalign.draw_elastic(
            count, shape=LABEL_SHAPE, rms=2.0, correlation_length=24.0, paired=True, seed=seed
        ),
    ),
}

_DESCRIPTION = """
A virtual-staining task with misaligned labels and their truth: gray tissue in, colour stain out, from one picture of
scikit-image (`skimage.data.immunohistochemistry`). Coordinates are pixels (row, col) from index `size // 2` of each
grid; input and label share their centre. What lays a label back is given as `transform` (fixed -> moving, 3x3), its
`translation` (how far down/right of its input the label lies), or for elastic moves as `displacement` on the grid of
the label, NaN where the moved label has no data: `tfalign.warp(label, transform)`. `truth` is the aligned stain of the
input.
"""
_CITATION = """@article{scikit-image,
  title={scikit-image: image processing in Python}, author={van der Walt, St{\\'e}fan and others},
  journal={PeerJ}, volume={2}, pages={e453}, year={2014}, doi={10.7717/peerj.453}}"""


class TfalignStain(tfds.core.GeneratorBasedBuilder):
    """Gray tissue and its misaligned colour stain; a config for each kind of misalignment."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 (declared so by the base class)
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=name, description=f"Misalignment: {text}.")
        for name, (text, _) in MISALIGNMENTS.items()
    ]
    COUNTS = {"train": 600, "validation": 80, "test": 100}  # noqa: RUF012

    def _info(self):
        feature = tfds.features
        if self.builder_config.name == "elastic":
            truth = {"displacement": feature.Tensor(shape=(*LABEL_SHAPE, 2), dtype=np.float32)}
        else:
            truth = {
                "transform": feature.Tensor(shape=(3, 3), dtype=np.float32),
                "translation": feature.Tensor(shape=(2,), dtype=np.float32),
            }
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=feature.FeaturesDict(
                {
                    "input": feature.Tensor(shape=(SIZE, SIZE, 1), dtype=np.float32),
                    "label": feature.Tensor(shape=(*LABEL_SHAPE, 3), dtype=np.float32),
                    "truth": feature.Tensor(shape=(SIZE, SIZE, 3), dtype=np.float32),
                    "center": feature.Tensor(shape=(2,), dtype=np.int32),
                    **truth,
                }
            ),
            supervised_keys=("input", "label"),
            homepage="https://scikit-image.org/docs/stable/api/skimage.data.html",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(name) for name in ROWS}

    def _generate_examples(self, split):
        gray, colour = (image[slice(*ROWS[split])] for image in stain.tissue())
        seed = list(ROWS).index(split)
        moves = MISALIGNMENTS[self.builder_config.name][1](self.COUNTS[split], seed)
        room = misalign.reach(moves, shape=LABEL_SHAPE)
        rng = np.random.default_rng([seed, 1])
        for number, move in enumerate(moves):
            center = rng.integers(room, np.array(colour.shape[:2]) - room)
            label, truth = misalign.misaligned(colour, move, shape=LABEL_SHAPE, center=center)
            yield (
                number,
                {
                    "input": misalign.cut(gray, shape=(SIZE, SIZE), center=center),
                    "label": label,
                    "truth": misalign.cut(colour, shape=(SIZE, SIZE), center=center),
                    "center": (center + (ROWS[split][0], 0)).astype(np.int32),
                    **_truth(truth.astype(np.float32)),
                },
            )


def _truth(move):
    """The features of what lays a label back."""
    if move.shape == (3, 3):
        return {"transform": move, "translation": move[:2, 2]}
    return {"displacement": move}

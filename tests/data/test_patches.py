import math
import tracemalloc

import numpy as np
import pytest

import tfalign
from tfalign.data import patches
from tfalign.data.patches import Tiles, balanced, content, cut, stitch, tile

SHAPES = {1: (53,), 2: (37, 50), 3: (13, 16, 21)}


@pytest.fixture(params=[1, 2, 3])
def image(request, rng):
    return rng.normal(size=(*SHAPES[request.param], 2)).astype(np.float32)


# Where patches lie.


@pytest.mark.parametrize(
    ("length", "size", "overlap"), [(53, 10, 0), (53, 10, 3), (53, 52, 51), (20, 10, 0), (21, 10, 9)]
)
def test_patches_cover_the_grid_with_no_more_than_needed(length, size, overlap):
    (starts,) = tile((length,), size=size, overlap=overlap).starts
    assert starts[0] == 0
    assert starts[-1] == length - size
    steps = np.diff(starts)
    assert steps.max() <= size - overlap
    assert steps.max() - steps.min() <= 1
    assert len(starts) == math.ceil((length - overlap) / (size - overlap))


def test_the_last_axis_runs_fastest():
    tiles = tile((20, 31), size=(10, 16))
    assert len(tiles) == 4
    assert [tiles[index] for index in range(4)] == [(0, 0), (0, 15), (10, 0), (10, 15)]


@pytest.mark.parametrize(
    ("shape", "count", "overlap", "starts", "size"),
    [
        ((100,), 3, 0, ((0, 33, 66),), (34,)),
        ((100,), 3, 10, ((0, 30, 60),), (40,)),
        ((60, 90), 6, 0, ((0, 30), (0, 30, 60)), (30, 30)),
        ((90, 60), 6, 0, ((0, 30, 60), (0, 30)), (30, 30)),
        ((60, 90), (1, 2), 4, ((0,), (0, 43)), (60, 47)),
        ((20, 20, 20), 8, 0, ((0, 10),) * 3, (10, 10, 10)),
        ((60, 90), 1, 0, ((0,), (0,)), (60, 90)),
    ],
)
def test_a_number_of_patches_is_kept(shape, count, overlap, starts, size):
    assert tile(shape, count=count, overlap=overlap) == Tiles(shape, size, starts)


def test_only_what_is_over_a_threshold_is_cut():
    whole = Tiles((60, 90), (60, 90), ((0,), (0,)))
    assert tile((60, 90)) == whole
    assert tile((60, 90), size=32, max_size=90) == whole
    assert tile((60, 90), size=32, max_size=(60, 90)) == whole
    assert len(tile((60, 90), size=32, max_size=89)) == 6
    assert len(tile((60, 90), size=32, max_size=(59, 90))) == 6
    assert tile((60, 90), count=4, max_pixels=5400) == whole
    assert len(tile((60, 90), count=4, max_pixels=5399)) == 4
    assert len(tile((60, 90), size=32, max_size=90, max_pixels=5399)) == 6
    assert len(tile((60, 90), size=32)) == 6


def test_a_small_grid_lies_in_the_middle_of_its_patch(rng):
    image = rng.normal(size=(5, 40, 1))
    tiles = tile((5, 40), size=(8, 20))
    assert tiles.starts == ((-2,), (0, 20))
    mirrored = next(cut(image, tiles))
    np.testing.assert_array_equal(mirrored[:, :, 0], image[[1, 0, 0, 1, 2, 3, 4, 4], :20, 0])
    np.testing.assert_array_equal(stitch(cut(image, tiles), tiles), image)
    assert tile((4, 4), size=(7, 8)).starts == ((-1,), (-2,))


# What is cut.


@pytest.mark.parametrize("margin", [0, 1, 4, 30])
@pytest.mark.parametrize("size", [(8, 9), (7, 12)])
def test_label_patches_share_the_centre_and_are_unknown_beyond_the_file(margin, size):
    shape = (23, 30)
    image = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).astype(np.float32)
    tiles = tile(shape, size=size, overlap=2)
    for window, label in zip(
        cut(image, tiles), cut(image, tiles, size=[n + 2 * margin for n in size], fill=np.nan), strict=True
    ):
        assert label.shape == (size[0] + 2 * margin, size[1] + 2 * margin, 2)
        inner = label[margin : margin + size[0], margin : margin + size[1]]
        np.testing.assert_array_equal(inner, window)
        expected = window[0, 0] - margin + np.stack(np.indices(label.shape[:2]), axis=-1)
        outside = (expected < 0).any(-1) | (expected >= shape).any(-1)
        np.testing.assert_array_equal(label, np.where(outside[..., None], np.nan, expected))


@pytest.mark.parametrize("shapes", [((20, 21), (28, 30)), ((21, 20), (27, 30)), ((20, 21), (27, 29))])
def test_labels_of_other_sizes_lie_on_the_centre_of_their_input(shapes):
    shape, label_shape = shapes
    image, label = np.zeros((*shape, 1)), np.zeros((*label_shape, 1))
    image[shape[0] // 2, shape[1] // 2] = label[label_shape[0] // 2, label_shape[1] // 2] = 1
    tiles = tile(shape, size=12, overlap=8)
    pairs = list(zip(cut(image, tiles), cut(label, tiles, size=16, fill=0.0), strict=True))
    assert sum(window.any() for window, _ in pairs) > 1
    for window, patch in pairs:
        np.testing.assert_array_equal(patch[2:-2, 2:-2], window)


def test_registration_finds_no_shift_between_input_and_label_patches(rng):
    image = rng.normal(size=(40, 43, 1)).astype(np.float32)
    tiles = tile((40, 43), size=(15, 16), overlap=5)
    inputs, labels = (np.stack(list(cut(image, tiles, size=size))) for size in (None, (21, 22)))
    found = tfalign.register(inputs, labels, max_shift=3, subpixel=False)
    assert not found.translation.numpy().any()
    assert (found.confidence.numpy() > 0.5).all()


def test_patches_are_copies_of_those_asked_for(rng):
    image = rng.normal(size=(20, 1))
    tiles = tile((20,), size=5)
    chosen = list(cut(image, tiles, indices=[3, 1]))
    np.testing.assert_array_equal(chosen, [image[15:20], image[5:10]])
    chosen[0][:] = 9
    assert (image != 9).all()


@pytest.mark.parametrize("dtype", [np.uint8, bool, np.int32])
def test_class_maps_keep_their_type_and_take_a_class_to_be_ignored(dtype):
    label = np.ones((6, 6, 1), dtype)
    patch = next(cut(label, tile((6, 6), size=6), size=8, fill=0))
    assert patch.dtype == dtype
    assert patch.sum() == 36


# Back to the whole.


@pytest.mark.parametrize(
    "options", [{"size": 8}, {"size": 9, "overlap": 4}, {"count": 3, "overlap": 2}, {"size": 70}, {}]
)
def test_stitching_inverts_cutting(image, options):
    tiles = tile(image.shape[:-1], **options)
    whole = stitch(cut(image, tiles), tiles)
    assert whole.dtype == image.dtype
    np.testing.assert_allclose(whole, image, rtol=3e-7, atol=1e-7)


def test_stitching_in_double_precision(image):
    tiles = tile(image.shape[:-1], size=7, overlap=3)
    np.testing.assert_allclose(stitch(cut(image.astype(float), tiles), tiles), image.astype(float), rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.uint8, bool])
def test_stitching_class_maps_is_exact(image, dtype):
    classes = (image * 50).astype(np.int32).astype(dtype)
    tiles = tile(image.shape[:-1], size=(9, 8, 7)[: image.ndim - 1], overlap=5)
    whole = stitch(cut(classes, tiles), tiles)
    assert whole.dtype == dtype
    np.testing.assert_array_equal(whole, classes)


@pytest.mark.parametrize(
    ("size", "window"), [((10, 11), (32, 32)), ((9, 9), (10, 21)), ((10, 8), (13, 21)), ((12, 16), (12, 16))]
)
def test_predictions_smaller_than_their_inputs_fill_the_whole(rng, size, window):
    image = rng.normal(size=(47, 38, 2)).astype(np.float32)
    tiles = tile((47, 38), size=size, overlap=4)
    begin = [big // 2 - small // 2 for big, small in zip(window, size)]

    def network(values):
        return 3 * values[begin[0] : begin[0] + size[0], begin[1] : begin[1] + size[1]]

    whole = stitch((network(one) for one in cut(image, tiles, size=window)), tiles)
    np.testing.assert_allclose(whole, 3 * image, rtol=3e-7, atol=1e-6)


def test_predictions_larger_than_their_tiles_are_blended(rng):
    image = rng.normal(size=(47, 38, 1))
    tiles = tile((47, 38), size=10)
    for larger in (16, 13):
        np.testing.assert_allclose(stitch(cut(image, tiles, size=larger), tiles), image, rtol=1e-12)


def test_what_no_prediction_covers_is_filled(rng):
    image = rng.normal(size=(30, 20, 1))
    tiles = tile((30, 20), size=10, overlap=4)
    whole = stitch((one[2:-2, 2:-2] for one in cut(image, tiles)), tiles, fill_value=np.nan)
    known = np.zeros((30, 20), bool)
    known[2:-2, 2:-2] = True
    np.testing.assert_array_equal(np.isnan(whole[..., 0]), ~known)
    np.testing.assert_allclose(whole[known], image[known], rtol=1e-12)


def test_blending_falls_linearly_from_patch_to_patch():
    tiles = tile((30,), size=20, overlap=10)
    first, second = np.zeros((20, 1)), np.ones((20, 1))
    whole = stitch([first, second], tiles)[:, 0]
    assert not whole[:10].any()
    assert (whole[20:] == 1).all()
    np.testing.assert_allclose(whole[10:20], np.arange(1, 11) / 11)
    classes = stitch([first.astype(np.uint8), second.astype(np.uint8)], tiles)[:, 0]
    assert classes.tolist() == [0] * 15 + [1] * 15


def test_unknown_predictions_stay_where_they_are():
    tiles = tile((30,), size=20, overlap=10)
    first = np.zeros((20, 1))
    first[3], first[12] = np.nan, np.inf
    whole = stitch([first, np.ones((20, 1))], tiles)[:, 0]
    assert np.flatnonzero(~np.isfinite(whole)).tolist() == [3, 12]


def test_stitching_to_a_file_takes_the_memory_of_a_patch(tmp_path):
    shape = (4096, 1024)
    out = np.memmap(tmp_path / "whole.dat", np.float32, "w+", shape=(*shape, 1))
    tiles = tile(shape, size=64, overlap=16)
    patch = np.ones((64, 64, 1), np.float32)
    tracemalloc.start()
    whole = stitch((patch for _ in range(len(tiles))), tiles, out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert whole is out
    assert peak < out.nbytes / 10
    np.testing.assert_allclose(out[::37, ::41], 1.0, rtol=1e-6)


# Content.


def test_content_of_class_maps_and_of_values(rng):
    classes = np.zeros((10, 10, 1), np.uint8)
    assert content(classes) == 0
    classes[:3] = 4
    assert content(classes) == pytest.approx(0.3)
    classes[5:] = 255
    assert content(classes, ignore_class=255) == pytest.approx(0.4)
    assert content(np.full((4, 1), 255, np.uint8), ignore_class=255) == 0
    values = rng.normal(size=(50, 50, 2)) * (1.0, 3.0)
    assert content(values) == pytest.approx(3.0, rel=0.05)
    values[:, :25] = np.nan
    assert content(values) == pytest.approx(3.0, rel=0.08)
    assert content(np.full((4, 4, 1), np.nan)) == 0
    assert content(np.full((4, 4, 1), 7.0)) == 0


def test_blank_patches_do_not_dominate():
    contents = np.concatenate([np.zeros(700), np.full(200, 0.01), np.linspace(0.2, 1.0, 100)])
    kept = balanced(contents, max_blank=0.2, seed=3)
    assert kept[900:].all()
    assert kept.sum() == 125
    np.testing.assert_array_equal(kept, balanced(contents, max_blank=0.2, seed=3))
    assert (kept != balanced(contents, max_blank=0.2, seed=4)).any()
    assert balanced(contents, max_blank=0.0).sum() == 100
    assert balanced(contents, max_blank=1.0).all()
    assert balanced(contents, max_blank=0.0, blank_below=0.005).sum() == 300
    assert balanced(contents, max_blank=0.0, blank_below=0.0).sum() == 300
    assert balanced(np.zeros(5)).all()
    assert balanced([]).shape == (0,)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: tile((30,), size=0), ValueError, "`size` must be >= 1. Received: size=0"),
        (lambda: tile((30,), size=3.5), TypeError, "size=3.5"),
        (lambda: tile((30, 30), size=(3,)), ValueError, r"size=\(3,\)"),
        (lambda: tile((30,), size=5, count=2), ValueError, "Only one of `size` and `count`.*size=5, count=2"),
        (lambda: tile((30,), size=5, overlap=5), ValueError, r"`overlap` must be smaller.*overlap=5, size=\(5,\)"),
        (lambda: tile((30,), size=5, overlap=-1), ValueError, "overlap=-1"),
        (lambda: tile((30,), count=0), ValueError, "count=0"),
        (lambda: tile((3,), count=5), ValueError, r"`count` must not exceed.*count=5, shape=\(3,\)"),
        (lambda: tile((30,), size=5, max_size=0), ValueError, "max_size=0"),
        (lambda: tile((30,), size=5, max_pixels=0), ValueError, "max_pixels=0"),
        (lambda: list(cut(np.ones((9, 9)), tile((9, 9)))), ValueError, r"2 spatial axes.*values.shape=\(9, 9\)"),
        (lambda: list(cut(np.ones((9, 1)), tile((9,)), size=11, fill="edge")), ValueError, "fill='edge'"),
        (lambda: stitch([np.ones((5, 1))], tile((10,), size=5)), ValueError, "one for each tile.*patches=1, tiles=2"),
        (lambda: stitch([np.ones((5, 1))] * 3, tile((10,), size=5)), ValueError, "one per tile.*patch=2.*tiles=2"),
        (lambda: stitch([np.ones((5, 1)), np.ones((6, 1))], tile((10,), size=5)), ValueError, r"its shape=\(6, 1\)"),
        (lambda: stitch([np.ones(5)], tile((10,), size=5)), ValueError, r"axes of the tiles.*patch.shape=\(5,\)"),
        (lambda: stitch([np.ones((5, 1))], tile((5,)), out=np.ones((4, 1))), ValueError, r"needed=\(5, 1\)"),
        (lambda: balanced([1.0], max_blank=2), ValueError, "max_blank=2"),
    ],
)
def test_mistakes_are_named(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_mirroring_reaches_beyond_the_width_of_the_grid():
    image = np.arange(3.0)[:, np.newaxis]
    window = next(cut(image, tile((3,), size=3), size=13))
    assert window[:, 0].tolist() == [1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1]
    assert patches.MIRROR == "mirror"

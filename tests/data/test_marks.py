import numpy as np
import pytest

from tfalign.data.marks import Box, Drawing, Mark, Point, Polygon, Runs, moved, rasterise


def at(*coordinates):
    return np.array(coordinates, dtype=float)


def point(*coordinates, **options):
    return Mark((Point(at(*coordinates)),), **options)


def box(low, high, **options):
    return Mark((Box(at(*low), at(*high)),), **options)


def polygon(*rings, **options):
    return Mark((Polygon(tuple(np.array(ring, float) for ring in rings)),), **options)


def pixels(drawn, value=1):
    """Indices of the pixels of a map that hold a value."""
    return {tuple(index) for index in np.argwhere(drawn[..., 0] == value).tolist()}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("radius", [1.0, 2.5])
def test_points_are_balls(rng, rank, radius):
    shape = (9, 8, 7)[:rank]
    center = rng.uniform(-1, 8, rank)
    drawn = rasterise([point(*center)], shape, Drawing(radius=radius))
    assert drawn.dtype == np.int32
    distances = np.linalg.norm(np.moveaxis(np.indices(shape), 0, -1) - center, axis=-1)
    np.testing.assert_array_equal(drawn[..., 0], distances <= radius)
    assert drawn.any()


def test_known_disc_and_box():
    assert pixels(rasterise([point(2, 1)], (5, 5), Drawing(radius=1))) == {(1, 1), (2, 0), (2, 1), (2, 2), (3, 1)}
    drawn = rasterise([box((1, 0.5), (2, 3))], (5, 5))
    assert pixels(drawn) == {(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)}


def test_box_in_1_and_3_axes_and_clipped():
    assert pixels(rasterise([box((2.2,), (4,))], (8,))) == {(3,), (4,)}
    assert pixels(rasterise([box((-5, -5, 1), (0, 0.9, 9))], (2, 2, 3))) == {(0, 0, 1), (0, 0, 2)}
    assert not rasterise([box((5, 5), (9, 9))], (4, 4)).any()


def test_a_box_between_the_centres_is_the_pixel_it_lies_in():
    assert pixels(rasterise([box((60.4,), (60.6,))], (100,))) == {(61,)}
    assert pixels(rasterise([box((2.1, 3.6), (2.3, 3.9))], (5, 5))) == {(2, 4)}
    assert pixels(rasterise([box((0.2, 1), (0.4, 3))], (5, 5))) == {(0, 1), (0, 2), (0, 3)}
    assert pixels(rasterise([box((-0.4, 0), (-0.1, 0))], (5, 5))) == {(0, 0)}
    assert not rasterise([box((-0.9, 0), (-0.6, 0)), box((4.6, 0), (4.9, 0))], (5, 5)).any()


@pytest.mark.parametrize("seed", range(5))
def test_polygon_holds_the_centres_inside_it(seed):
    """The even-odd rule, pixel by pixel, on vertices that meet no centre."""
    ring = np.random.default_rng(seed).uniform(-2, 14, (7, 2))
    drawn = rasterise([polygon(ring)], (12, 11))[..., 0]
    for row in range(12):
        for col in range(11):
            crossings = 0
            for (r1, c1), (r2, c2) in zip(ring, np.roll(ring, -1, axis=0)):
                if (r1 > row) != (r2 > row) and col < c1 + (row - r1) * (c2 - c1) / (r2 - r1):
                    crossings += 1
            assert drawn[row, col] == crossings % 2, (row, col)


def test_square_polygon_equals_box_and_holes_are_left_out():
    square = [[1, 1], [1, 6], [6, 6], [6, 1]]
    drawn = rasterise([polygon(square)], (9, 9))
    np.testing.assert_array_equal(drawn, rasterise([box((1, 1), (6, 6))], (9, 9)))
    hole = [[2.5, 2.5], [2.5, 4.5], [4.5, 4.5], [4.5, 2.5]]
    assert pixels(drawn) - pixels(rasterise([polygon(square, hole)], (9, 9))) == {(3, 3), (3, 4), (4, 3), (4, 4)}


def test_a_hole_that_leaves_the_picture():
    square, hole = [[-3, -3], [-3, 2], [2, 2], [2, -3]], [[-2, -2], [-2, 1], [1, 1], [1, -2]]
    assert pixels(rasterise([polygon(square, hole)], (5, 5))) == {(0, 2), (1, 2), (2, 0), (2, 1), (2, 2)}


def test_classes_by_number_and_by_name():
    marks = [point(1, 1, number=4, name="4"), point(1, 5), point(5, 5, number=2)]
    assert np.unique(rasterise(marks, (8, 8), Drawing(radius=1))).tolist() == [0, 1, 2, 4]
    marks = [point(1, 1, name="b"), point(5, 5, name="a")]
    drawn = rasterise(marks, (8, 8), Drawing(radius=1, classes=("a", "b")))
    assert (drawn[1, 1, 0], drawn[5, 5, 0]) == (2, 1)


def test_instances_masks_and_order():
    marks = [box((0, 0), (3, 3), name="a"), box((2, 2), (5, 5), name="b"), box((0, 5), (1, 6), name="a")]
    drawn = rasterise(marks, (7, 7), Drawing(kind="instances"))
    assert drawn.dtype == np.int32
    assert (drawn[0, 0, 0], drawn[2, 2, 0], drawn[5, 5, 0], drawn[0, 5, 0], drawn[6, 0, 0]) == (1, 2, 2, 3, 0)
    masks = rasterise(marks, (7, 7), Drawing(kind="masks", classes=("a", "b")))
    assert masks.dtype == np.uint8
    assert masks.shape == (7, 7, 2)
    assert masks[2, 2].tolist() == [1, 1]
    assert masks.sum(axis=(0, 1)).tolist() == [16 + 4, 16]
    assert rasterise(marks, (7, 7), Drawing(kind="masks")).shape == (7, 7, 1)


def test_parts_of_one_mark_are_one_instance():
    mark = Mark((Point(at(1, 1)), Point(at(5, 5))))
    drawn = rasterise([mark, point(1, 6)], (8, 8), Drawing(kind="instances", radius=1))
    assert drawn[1, 1, 0] == drawn[5, 5, 0] == 1
    assert drawn[1, 6, 0] == 2


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_heatmap_is_a_gaussian_of_height_1(rng, rank):
    shape, sigma = (15, 14, 13)[:rank], 2.0
    centers = rng.uniform(2, 10, (2, rank))
    marks = [point(*center) for center in centers]
    drawn = rasterise(marks, shape, Drawing(kind="heatmap", radius=sigma))
    assert drawn.dtype == np.float32
    grid = np.moveaxis(np.indices(shape), 0, -1)
    expected = [np.exp(-0.5 * (np.linalg.norm(grid - center, axis=-1) / sigma) ** 2) for center in centers]
    np.testing.assert_allclose(drawn[..., 0], np.max(expected, axis=0), atol=4e-4)
    assert rasterise([point(*[5] * rank)], shape, Drawing(kind="heatmap")).max() == 1.0


def test_heatmap_of_areas_is_at_their_middle():
    marks = [box((2, 2), (4, 6), name="a"), polygon([[8, 8], [8, 12], [10, 10]], name="b")]
    drawn = rasterise(marks, (14, 14), Drawing(kind="heatmap", radius=1, classes=("a", "b")))
    assert [np.unravel_index(drawn[..., c].argmax(), (14, 14)) for c in (0, 1)] == [(3, 4), (9, 10)]
    runs = Runs(np.array([19, 3, 11, 3, 11, 3, 146]), (14, 14))
    drawn = rasterise([Mark((runs,))], (14, 14), Drawing(kind="heatmap"))
    assert np.unravel_index(drawn.argmax(), (14, 14, 1))[:2] == (6, 2)


def test_run_lengths_go_down_the_columns():
    runs = Mark((Runs(np.array([1, 2, 4, 1]), (4, 2)),))
    assert pixels(rasterise([runs], (4, 2))) == {(1, 0), (2, 0), (3, 1)}
    with pytest.raises(ValueError, match=r"Received: sizes=\(4, 2\), map=\(4, 5\)"):
        rasterise([runs], (4, 5))


def test_moved():
    marks = [Mark((Point(at(1, 2)), Box(at(0, 0), at(1, 1)), Polygon((np.eye(3, 2),)), Runs([4], (2, 2))))]
    (mark,) = moved(marks, offset=at(10, 20), scale=2.0)
    np.testing.assert_array_equal(mark.parts[0].at, [12, 24])
    np.testing.assert_array_equal(mark.parts[1], [[10, 20], [12, 22]])
    np.testing.assert_array_equal(mark.parts[2].rings[0], 2 * np.eye(3, 2) + [10, 20])
    assert mark.parts[3] == Runs([4], (2, 2))


def test_nothing_is_background():
    assert rasterise([], (3, 4)).tolist() == np.zeros((3, 4, 1)).tolist()


@pytest.mark.parametrize("mark", [point(1), box((1,), (2,)), polygon([[0, 0], [1, 1], [0, 1]])])
@pytest.mark.parametrize("kind", ["classes", "heatmap"])
def test_another_rank_than_the_map(mark, kind):
    with pytest.raises(ValueError, match=r"rank of the input. Received: axes=\d, input=\(3, 3, 3\)"):
        rasterise([mark], (3, 3, 3), Drawing(kind=kind))


@pytest.mark.parametrize(
    ("mark", "drawing", "match"),
    [
        (point(1, 1, name="cat"), Drawing(), "number >= 1. Received: class='cat', number=None"),
        (point(1, 1, name="0", number=0), Drawing(), "number=0"),
        (point(1, 1, name="cat"), Drawing(classes=("dog",)), r"one of `classes`. Received: class='cat'"),
        (point(1, 1), Drawing(classes=("dog", "cat")), "class=None"),
    ],
)
def test_unknown_classes(mark, drawing, match):
    with pytest.raises(ValueError, match=match):
        rasterise([mark], (3, 3), drawing)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kind": "dots"}, "`kind` must be one of"),
        ({"origin": "top"}, "`origin` must be one of"),
        ({"radius": 0.5}, "radius=0.5"),
        ({"scale": 0}, "scale=0"),
        ({"classes": "ab"}, "classes='ab'"),
        ({"classes": ("a", "a")}, "different names"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(ValueError, match=match):
        Drawing(**options).checked()


def test_class_names_may_be_numbers():
    assert Drawing(classes=[7, "x"]).checked().classes == ("7", "x")

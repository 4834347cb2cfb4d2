import json

import numpy as np
import pytest

from tfalign.data import positions
from tfalign.data.marks import Box, Drawing, Mark, Point, rasterise


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def drawn_pixels(marks, shape=(9, 9), **options):
    drawn = rasterise(marks, shape, Drawing(**options))
    return {tuple(index) for index in np.argwhere(drawn[..., 0]).tolist()}


def feature(kind, coordinates, **properties):
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": properties,
    }


def coco(*annotations, **image):
    image = {"id": 7, "file_name": "a b.png", "height": 6, "width": 8, **image}
    return {
        "images": [image, {"id": 8, "file_name": "empty.png", "height": 2, "width": 3}],
        "annotations": [{"image_id": 7, "category_id": 3, **annotation} for annotation in annotations],
        "categories": [{"id": 3, "name": "cell"}],
    }


class TestMoved:
    """Every position is read, moved by its own matrix, and is where the matrix says."""

    MATRIX = np.array([[0.0, -1.0, 9.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # a quarter turn

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("a.csv", "row,col\n2,5\n"),
            ("a.csv", "row_min,row_max,col_min,col_max\n1,2,3,5\n"),
            ("a.geojson", feature("Point", [5.5, 2.5, 7])),
            ("a.geojson", [feature("Polygon", [[[1, 1], [1, 4], [6, 4], [1, 1]]])]),
        ],
    )
    @pytest.mark.parametrize("scale", [1.0, 0.5])
    def test_in_files_of_one_input(self, tmp_path, name, content, scale):
        path, drawing, shape = write(tmp_path / name, content), Drawing(scale=scale), (12, 10)
        centered = np.eye(3)
        centered[:2, 2] = 6, 5
        move = positions.in_file(np.linalg.inv(centered) @ self.MATRIX @ centered, path, drawing, shape)
        positions.write_moved(path, tmp_path / "new" / name, {None: move})
        (before,), (after,) = (positions.read(one, drawing) for one in (path, tmp_path / "new" / name))
        for part, moved in zip(before.parts, after.parts):
            if isinstance(part, Box):
                assert (*moved.low, *moved.high) == (9 - part.high[1], part.low[0], 9 - part.low[1], part.high[0])
            else:
                points, found = (np.reshape(one[0], (-1, 2)) for one in (part, moved))
                np.testing.assert_allclose(found, np.stack([9 - points[:, 1], points[:, 0]], axis=-1), atol=1e-8)

    def test_in_coco(self, tmp_path):
        counts = [7, 2, 4, 2, 4, 2, 27]
        objects = [
            {"segmentation": {"counts": counts, "size": [6, 8]}},
            {"segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]], "bbox": [1, 1, 3, 2], "keypoints": [2.5, 1.5, 2, 0, 0, 0]},
            {"bbox": [0, 0, 2, 1]},
        ]
        path = write(tmp_path / "a.json", coco(*objects))
        move = np.array([[0.0, -1.0, 8.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        positions.write_moved(path, tmp_path / "b.json", {"a b.png": move}, {"a b.png": (8, 6)})
        found = positions.read_shared(tmp_path / "b.json", Drawing())
        shape, marks = found["a b.png"]
        assert shape == (8, 6)
        assert found["empty.png"][0] == (2, 3)
        before = positions.read_shared(path, Drawing())["a b.png"][1]
        for one, other in zip(before, marks, strict=True):
            pixels = drawn_pixels([one], (6, 8), kind="masks")
            assert drawn_pixels([other], shape, kind="masks") == {(7 - col, row) for row, col in pixels}
        annotation = json.loads((tmp_path / "b.json").read_text())["annotations"][1]
        assert annotation["keypoints"] == [1.5, 5.5, 2, 0, 0, 0]


class TestTables:
    @pytest.mark.parametrize(
        "text",
        [
            "row,col\n2,5\n",
            "x,y\n5,2\n",
            "X;Y\n5.0;2.0\n",
            "X;Y\n5,0;2,0\n",
            'x,y\n"5,0","2,0"\n',
            "Col\tRow\textra\n5\t2\tword\n",
        ],
    )
    def test_points(self, tmp_path, text):
        (mark,) = positions.read(write(tmp_path / "a.csv", text), Drawing())
        assert isinstance(mark.parts[0], Point)
        np.testing.assert_array_equal(mark.parts[0].at, [2, 5])

    @pytest.mark.parametrize("text", ["plane,row,col\n1,2,5\n", "z,y,x\n1,2,5\n", "x,y,z\n5,2,1\n"])
    def test_points_in_volumes(self, tmp_path, text):
        (mark,) = positions.read(write(tmp_path / "a.csv", text), Drawing())
        np.testing.assert_array_equal(mark.parts[0].at, [1, 2, 5])

    @pytest.mark.parametrize(
        "text",
        [
            "row_min,row_max,col_min,col_max\n1,2,3,5\n",
            "xmin,ymin,xmax,ymax\n3,1,5,2\n",
            "x_min,x_max,y_min,y_max\n3,5,1,2\n",
        ],
    )
    def test_boxes(self, tmp_path, text):
        (mark,) = positions.read(write(tmp_path / "a.csv", text), Drawing())
        assert isinstance(mark.parts[0], Box)
        np.testing.assert_array_equal(mark.parts[0], [[1, 3], [2, 5]])

    def test_boxes_in_volumes(self, tmp_path):
        text = "z_min,z_max,y_min,y_max,x_min,x_max\n0,1,2,3,4,5\n"
        (mark,) = positions.read(write(tmp_path / "a.csv", text), Drawing())
        np.testing.assert_array_equal(mark.parts[0], [[0, 2, 4], [1, 3, 5]])

    def test_peaks_and_intervals(self, tmp_path):
        marks = positions.read(write(tmp_path / "a.csv", "position,class\n4.25,2\n"), Drawing())
        assert marks == [Mark((Point(np.array([4.25])),), "2", 2)]
        (mark,) = positions.read(write(tmp_path / "a.tsv", "start\tend\tlabel\n2\t4\tword\n"), Drawing())
        assert (mark.parts[0].low, mark.parts[0].high, mark.name, mark.number) == ([2], [4], "word", None)

    def test_seconds(self, tmp_path):
        path = write(tmp_path / "a.csv", "start,end\n0.5,0.75\n")
        (mark,) = positions.read(path, Drawing(scale=8000))
        assert (mark.parts[0].low, mark.parts[0].high) == ([4000], [6000])

    def test_polygons_by_their_vertices(self, tmp_path):
        text = "polygon,x,y,class\n1,1,1,a\n1,4,1,a\n2,6,6,b\n1,1,4,a\n2,8,6,b\n2,8,8,b\n"
        first, second = positions.read(write(tmp_path / "a.csv", text), Drawing())
        assert (first.name, second.name) == ("a", "b")
        np.testing.assert_array_equal(first.parts[0].rings, [[[1, 1], [1, 4], [4, 1]]])
        np.testing.assert_array_equal(second.parts[0].rings, [[[6, 6], [6, 8], [8, 8]]])

    def test_0_is_the_centre_unless_told(self, tmp_path):
        path = write(tmp_path / "a.csv", "x_min,y_min,x_max,y_max\n0,0,2,1\n")
        assert len(drawn_pixels(positions.read(path, Drawing()))) == 3 * 2
        assert drawn_pixels(positions.read(path, Drawing(origin="corner"))) == {(0, 0), (0, 1)}

    def test_parquet(self, tmp_path):
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        table = pyarrow.table({"Row": [2, 3], "Col": [5.5, 6.5], "class": ["a", None], "name": ["é", "b"]})
        parquet.write_table(table, tmp_path / "a.parquet")
        found = positions.read_shared(tmp_path / "a.parquet", Drawing())
        assert {name: (shape, marks[0].name) for name, (shape, marks) in found.items()} == {
            "é": (None, "a"),
            "b": (None, None),
        }
        np.testing.assert_array_equal(found["b"][1][0].parts[0].at, [3, 6.5])

    def test_headings_alone_mean_nothing_is_there(self, tmp_path):
        assert positions.read(write(tmp_path / "a.csv", "x,y\n"), Drawing()) == []

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("x,y\n1,one\n", "could not convert"),
            ("x,y\n1,inf\n", "must be finite"),
            ("x,y\n1\n", "row 1 has not as many cells"),
            ("x,y\n1,2,3\n", "row 1 has not as many cells"),
            ("start,end\n2,1\n", "must not end before it begins"),
            ("x,z\n2,1\n", r"must name a position. Received: headings=\['x', 'z'\]"),
            ("polygon,x,y\n1,2,3\n1,4,5\n", "three vertices"),
        ],
    )
    def test_damaged(self, tmp_path, text, match):
        with pytest.raises(ValueError, match=match):
            positions.read(write(tmp_path / "a.csv", text), Drawing())

    def test_a_spectrum_is_no_table_of_positions(self, tmp_path):
        assert positions.is_file_of_positions(write(tmp_path / "a.csv", "X,Y,class\n"))
        assert not positions.is_file_of_positions(write(tmp_path / "b.csv", "wavelength,intensity\n400,1\n"))
        assert not positions.is_file_of_positions(write(tmp_path / "c.csv", "1,2\n"))
        assert not positions.is_file_of_positions(write(tmp_path / "d.csv", ""))


class TestGeojson:
    def test_x_comes_first_and_0_is_the_corner(self, tmp_path):
        ring = [[3, 1], [6, 1], [6, 2], [3, 2], [3, 1]]
        path = write(tmp_path / "a.geojson", feature("Polygon", [ring]))
        assert drawn_pixels(positions.read(path, Drawing())) == {(1, 3), (1, 4), (1, 5)}
        assert len(drawn_pixels(positions.read(path, Drawing(origin="center")))) == 2 * 4

    def test_hole_and_several_polygons_are_one_mark(self, tmp_path):
        square = [[0, 0], [5, 0], [5, 5], [0, 5], [0, 0]]
        hole = [[1, 1], [4, 1], [4, 4], [1, 4], [1, 1]]
        corner = [[7, 7], [9, 7], [9, 9], [7, 9], [7, 7]]
        content = {"type": "FeatureCollection", "features": [feature("MultiPolygon", [[square, hole], [corner]])]}
        marks = positions.read(write(tmp_path / "a.geojson", content), Drawing())
        assert len(marks) == 1
        assert len(drawn_pixels(marks)) == 25 - 9 + 4

    def test_list_of_features_and_points(self, tmp_path):
        content = [feature("Point", [3.5, 1.5]), feature("MultiPoint", [[1, 2], [3, 4]])]
        first, second = positions.read(write(tmp_path / "a.json", content), Drawing())
        np.testing.assert_array_equal(first.parts[0].at, [1, 3])
        np.testing.assert_array_equal([part.at for part in second.parts], [[1.5, 0.5], [3.5, 2.5]])

    @pytest.mark.parametrize(
        ("properties", "name", "number"),
        [
            ({"classification": {"name": "Tumor", "color": [1, 2, 3]}}, "Tumor", None),
            ({"class": "Tumor"}, "Tumor", None),
            ({"label": 2}, "2", 2),
            ({"name": "3"}, "3", 3),
            ({"class": 4.0}, "4.0", 4),
            ({"class": "4.5"}, "4.5", None),
            ({"other": "x"}, None, None),
        ],
    )
    def test_class(self, tmp_path, properties, name, number):
        path = write(tmp_path / "a.geojson", [feature("Point", [1, 1], **properties)])
        (mark,) = positions.read(path, Drawing())
        assert (mark.name, mark.number) == (name, number)

    def test_no_properties(self, tmp_path):
        content = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 1]}, "properties": None}
        assert len(positions.read(write(tmp_path / "a.geojson", content), Drawing())) == 1

    def test_a_line_has_no_area(self, tmp_path):
        path = write(tmp_path / "a.geojson", feature("LineString", [[1, 1], [2, 2]]))
        with pytest.raises(ValueError, match=r"`geometry` must be one of .* Received: geometry='LineString'"):
            positions.read(path, Drawing())


class TestCoco:
    def test_known_box(self, tmp_path):
        path = write(tmp_path / "a.json", coco({"bbox": [0, 0, 2, 2]}, {"bbox": [3, 1, 4, 1]}))
        found = positions.read_shared(path, Drawing())
        shape, marks = found["a b.png"]
        assert shape == (6, 8)
        assert found["empty.png"] == ((2, 3), [])
        assert [(mark.name, mark.number) for mark in marks] == [("cell", 3)] * 2
        assert drawn_pixels(marks[:1], shape) == {(0, 0), (0, 1), (1, 0), (1, 1)}
        assert drawn_pixels(marks[1:], shape) == {(1, 3), (1, 4), (1, 5), (1, 6)}

    def test_polygons_of_one_annotation_are_one_instance(self, tmp_path):
        segmentation = [[0, 0, 2, 0, 2, 1, 0, 1], [5, 5, 6, 5, 6, 6, 5, 6]]
        path = write(tmp_path / "a.json", coco({"segmentation": segmentation, "bbox": [0, 0, 6, 6]}))
        shape, marks = positions.read_shared(path, Drawing())["a b.png"]
        assert len(marks) == 1
        assert drawn_pixels(marks, shape) == {(0, 0), (0, 1), (5, 5)}

    def test_key_points(self, tmp_path):
        path = write(tmp_path / "a.json", coco({"keypoints": [1.5, 2.5, 2, 0, 0, 0, 4.5, 0.5, 1]}))
        _, (mark,) = positions.read_shared(path, Drawing())["a b.png"]
        np.testing.assert_array_equal([part.at for part in mark.parts], [[2, 1], [0, 4]])

    # The text is what pycocotools.mask.encode gives for this mask.
    @pytest.mark.parametrize("counts", [[7, 2, 4, 2, 4, 2, 27], "724000g0"])
    def test_run_lengths(self, tmp_path, counts):
        path = write(tmp_path / "a.json", coco({"segmentation": {"counts": counts, "size": [6, 8]}}))
        shape, marks = positions.read_shared(path, Drawing())["a b.png"]
        assert drawn_pixels(marks, shape) == {(row, col) for row in (1, 2) for col in (1, 2, 3)}

    def test_long_run_lengths(self, tmp_path):
        """Runs of more than one character, and shorter than two before."""
        counts = "[6T140000S" + "ONd02\\" * 11 + "ONd029000000000000000000eg04"
        mask = np.zeros((40, 50), bool)
        mask[3:39, 5:30] = True
        mask[10:12, 8:20] = False
        mask[:, 49] = True
        content = coco({"segmentation": {"counts": counts, "size": [40, 50]}}, height=40, width=50)
        _, marks = positions.read_shared(write(tmp_path / "a.json", content), Drawing())["a b.png"]
        np.testing.assert_array_equal(rasterise(marks, (40, 50))[..., 0] == 3, mask)

    @pytest.mark.parametrize(
        "segmentation", [{"counts": [1, 2], "size": [6, 8]}, {"counts": [48], "size": [8, 6]}, {"counts": [60, -12]}]
    )
    def test_run_lengths_of_another_size(self, tmp_path, segmentation):
        path = write(tmp_path / "a.json", coco({"segmentation": {"size": [6, 8], **segmentation}}))
        with pytest.raises(ValueError, match="must fill the image"):
            positions.read_shared(path, Drawing())

    def test_sizes_do_not_count_where_a_scale_is_given(self, tmp_path):
        path = write(tmp_path / "a.json", coco({"bbox": [0, 0, 4, 2]}))
        shape, marks = positions.read_shared(path, Drawing(scale=0.5))["a b.png"]
        assert shape is None
        assert drawn_pixels(marks, (3, 4)) == {(0, 0), (0, 1)}

    def test_other_files_are_of_one_input(self, tmp_path):
        assert positions.read_shared(write(tmp_path / "a.json", []), Drawing()) is None
        assert positions.read_shared(write(tmp_path / "a.csv", "x,y\n"), Drawing()) is None

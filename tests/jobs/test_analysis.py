import numpy as np
import pytest
import skimage.color
import skimage.draw
import tifffile
from PIL import Image
from typer.testing import CliRunner

from tests.jobs.run_folders import read_csv
from tfalign import cli
from tfalign.data import BadFileError, formats
from tfalign.jobs import analysis, files
from tfalign.jobs import analysis_numbers as numbers


def stained(places, *, size=(120, 160), radius=7, haematoxylin=0.10, dab=0.12):
    """A picture `(rows, cols, 3)` of discs, `(row, col, is positive)` each, on an empty slide."""
    hed = np.zeros((*size, 3), np.float32)
    for row, col, positive in places:
        disc = skimage.draw.disk((row, col), radius, shape=size)
        hed[disc] = [haematoxylin, 0.0, dab if positive else 0.0]
    return skimage.color.hed2rgb(hed).astype(np.float32)


PLACES = [(20, 20, True), (20, 60, False), (60, 30, True), (60, 100, False), (100, 60, False), (100, 140, True)]


def test_the_labelling_index_of_known_nuclei():
    image = stained(PLACES)
    found = numbers.amounts(image)
    thresholds = numbers.Thresholds(0.3, 0.3)
    nuclei = numbers.find_nuclei(found, thresholds, min_area=30)
    row = numbers.stain_row(found, nuclei, thresholds, (slice(None), slice(None)))
    assert (row["nuclei"], row["positive_nuclei"], row["labelling_index"]) == (6, 3, 0.5)
    np.testing.assert_allclose(row["positive_area"], 3 * 145, rtol=0.02)
    assert row["area"] == 120 * 160
    # The unit of the stains is that of rgb2hed; six times it is an optical density.
    np.testing.assert_allclose(row["positive_density"], 6 * 0.12, rtol=0.02)
    np.testing.assert_allclose(row["density"], 6 * 0.12 * 3 * 145 / (120 * 160), rtol=0.05)


def test_touching_nuclei_are_parted():
    image = stained([(50, 50, True), (50, 63, False)])
    thresholds = numbers.Thresholds(0.3, 0.3)
    nuclei = numbers.find_nuclei(numbers.amounts(image), thresholds, min_area=30)
    assert sorted(nuclei.is_positive.tolist()) == [False, True]
    np.testing.assert_allclose(sorted(nuclei.centres[:, 1]), [50, 63], atol=2)


def test_a_marker_around_nuclei_is_found_in_their_cells():
    hed = np.zeros((60, 120, 3), np.float32)
    for col, dab in ((30, 0.12), (90, 0.0)):
        hed[skimage.draw.disk((30, col), 12)] = [0.0, 0.0, dab]
        hed[skimage.draw.disk((30, col), 6)] = [0.10, 0.0, 0.0]
    image, thresholds = skimage.color.hed2rgb(hed), numbers.Thresholds(0.3, 0.3)
    for location, positive in (("cells", [True, False]), ("nuclei", [False, False])):
        found = numbers.amounts(image, location="cells")
        nuclei = numbers.find_nuclei(found, thresholds, min_area=80, location=location)
        order = np.argsort(nuclei.centres[:, 1])
        assert nuclei.is_positive[order].tolist() == positive
        np.testing.assert_allclose(nuclei.centres[order, 1], [30, 90], atol=1)


def test_nothing_stained_is_nothing_found():
    image = np.ones((40, 40, 3), np.float32)
    found = numbers.amounts(image)
    thresholds = numbers.Thresholds(*(numbers.otsu(numbers.sample(one)) for one in found))
    nuclei = numbers.find_nuclei(found, thresholds, min_area=30)
    row = numbers.stain_row(found, nuclei, thresholds, (slice(None), slice(None)))
    assert (row["positive_area"], row["nuclei"], row["labelling_index"], row["positive_density"]) == (0, 0, None, None)


def test_optical_density_of_a_dark_channel():
    image = np.full((10, 10, 1), 0.01, np.float32)
    image[:5] = 1.0
    found = numbers.amounts(image, signal="dark")
    np.testing.assert_allclose([found.marker[0, 0], found.marker[9, 9]], [0, 2], atol=1e-5)
    assert found.nuclei is None
    bright = numbers.amounts(np.concatenate([image, 2 * image], axis=-1), marker=1, nuclei=0)
    np.testing.assert_array_equal(bright.marker, 2 * image[..., 0])
    np.testing.assert_array_equal(bright.nuclei, image[..., 0])


def test_fields_share_out_an_image_and_its_nuclei():
    assert [place for place, _ in numbers.fields((120, 160), 80)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    covered = np.zeros((130, 170), int)
    for _, window in numbers.fields(covered.shape, 50):
        covered[window] += 1
    assert (covered == 1).all()
    found, thresholds = numbers.amounts(stained(PLACES)), numbers.Thresholds(0.3, 0.3)
    nuclei = numbers.find_nuclei(found, thresholds, min_area=30)
    rows = [numbers.stain_row(found, nuclei, thresholds, window) for _, window in numbers.fields((120, 160), 60)]
    assert sum(row["nuclei"] for row in rows) == 6
    assert sum(row["area"] for row in rows) == 120 * 160


def test_area_and_count_of_classes():
    found = np.zeros((20, 30), np.uint8)
    found[2:6, 2:6] = 1
    found[10:14, 10:15] = 1
    found[18, 29] = 1  # too small to count
    found[2:4, 20:30] = 2
    rows = numbers.class_rows(found, [0, 1, 2, 3], min_area=4, pixel_area=0.25)
    assert [row["count"] for row in rows] == [1, 2, 1, 0]
    assert [row["area"] for row in rows] == [0.25 * (600 - 57), 0.25 * 37, 0.25 * 20, 0]
    assert rows[1]["mean_area"] == 0.25 * 18
    assert rows[3]["mean_area"] is None
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    diagonal = np.eye(5, dtype=np.uint8)
    assert numbers.class_rows(diagonal, [1])[0]["count"] == 1


def test_stains_of_a_folder(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    pictures = {"a b": PLACES, "sub/é": PLACES[:2]}
    for name, places in pictures.items():
        Image.fromarray(np.uint8(255 * stained(places) + 0.5)).save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG")
    for table in ("predictions.csv", "skipped.csv"):  # as they lie among predictions
        (tmp_path / "in" / table).write_text("name,file\na b,a b.png\n")
    arguments = ["analyse", "--inputs", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--field", "60"]
    result = CliRunner().invoke(cli.app, [*arguments, "--pixel-size", "0.5"])
    assert result.exit_code == 0, result.output
    rows = read_csv(tmp_path / "out" / "analysis.csv")
    assert [(row["name"], row["nuclei"], row["labelling_index"]) for row in rows] == [
        ("a b", "6", "0.5"),
        ("sub/é", "2", "0.5"),
    ]
    assert float(rows[0]["area"]) == 120 * 160 / 4
    fields = read_csv(tmp_path / "out" / "fields.csv")
    assert sum(int(row["nuclei"]) for row in fields) == 8
    assert fields[0]["field"] == "1-1"
    drawn = formats.read(tmp_path / "out" / "pictures" / "sub" / "é.png")
    red, blue = (np.all(drawn == color, axis=-1) for color in (analysis._POSITIVE, analysis._NEGATIVE))
    np.testing.assert_allclose(np.argwhere(red).mean(axis=0), [20, 20], atol=1)
    np.testing.assert_allclose(np.argwhere(blue).mean(axis=0), [20, 60], atol=1)
    assert formats.read(tmp_path / "out" / "analysis.png").shape[-1] == 3
    assert 0.1 < files.read_json(tmp_path / "out" / "analysis.json")["thresholds"]["marker"] < 0.7
    assert "labelling index 50.0 %" in result.output
    assert "1 file was left out" in result.output
    assert "broken.png" in result.output
    assert "3/3" in result.output


def test_its_own_pictures_are_no_inputs(tmp_path):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="`out` must not be among the inputs"):
        analysis.analyse(tmp_path, tmp_path / "analysis")


def test_class_maps_of_a_folder(tmp_path):
    (tmp_path / "in").mkdir()
    found = np.zeros((30, 40), np.uint8)
    found[5:15, 5:15] = 2
    Image.fromarray(found).save(tmp_path / "in" / "map.png")
    tifffile.imwrite(tmp_path / "in" / "stack.tif", np.stack([found] * 3), metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "in" / "stain.tif", np.zeros((5, 5), np.float32))
    result = analysis.analyse(tmp_path / "in", tmp_path / "out")
    assert result.kind == "classes"
    counts = {(row["name"], row["class"]): (row["count"], row["area"]) for row in result.rows}
    assert counts == {("map", 0): (1, 1100), ("map", 2): (1, 100), ("stack", 0): (1, 3300), ("stack", 2): (1, 300)}
    assert [path.rpartition("/")[2] for path, _ in result.skipped] == ["stain.tif"]
    assert analysis.in_words(result) == "2 images, 2 classes"
    with pytest.raises(BadFileError, match=r"stain\.tif"):
        analysis.analyse(tmp_path / "in", tmp_path / "out", strict=True)


def test_fluorescence_has_no_index_without_nuclei(tmp_path):
    (tmp_path / "in").mkdir()
    image = np.zeros((40, 40), np.float32)
    image[10:20, 10:20] = 7.0
    tifffile.imwrite(tmp_path / "in" / "a.tif", image)
    result = analysis.analyse(tmp_path / "in", tmp_path / "out")
    (row,) = result.rows
    assert (row["positive_area"], row["positive_density"], row["labelling_index"]) == (100, 7.0, None)
    assert read_csv(tmp_path / "out" / "analysis.csv")[0]["labelling_index"] == ""


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kind": "x"}, "`kind` must be one of"),
        ({"pixel_size": 0}, "`pixel_size` must be > 0"),
        ({"marker": 3, "kind": "stain"}, "`inputs` must hold a file that can be measured.*marker=3, channels=1"),
        ({"min_area": 0}, "`min_area` must be >= 1"),
    ],
)
def test_mistakes(options, text, tmp_path):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=text):
        analysis.analyse(tmp_path / "a.png", tmp_path / "out", **options)

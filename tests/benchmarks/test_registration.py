import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

from benchmarks.registration import __main__ as command
from benchmarks.registration import rivals, scenes, studies


@pytest.mark.parametrize(("rank", "size"), [(1, 64), (2, 32), (3, 12)])
def test_pairs_are_moved_as_they_say(rank, size):
    """Whole shifts: the moving patch holds the fixed one at its margin plus the shift."""
    pairs = scenes.pairs(3, rank=rank, size=size, bound=4, margin=5, whole=True, seed=1)
    assert pairs.fixed.shape == (3, *(size,) * rank, 1)
    for fixed, moving, shift in zip(pairs.fixed[..., 0], pairs.moving[..., 0], pairs.shifts.astype(int)):
        window = tuple(slice(5 + one, 5 + one + size) for one in shift)
        np.testing.assert_allclose(moving[window], fixed, atol=1e-5)


def test_fractions_agree_with_splines():
    pairs = scenes.pairs(3, size=32, bound=4, margin=10, cut=0.05)
    for fixed, moving, shift in zip(pairs.fixed[..., 0], pairs.moving[..., 0], pairs.shifts):
        back = scipy.ndimage.shift(moving, -shift, order=5)[10:-10, 10:-10]
        np.testing.assert_allclose(back, fixed, atol=0.02)


def test_noise_has_its_ratio():
    clean, noisy = (scenes.pairs(5, snr_db=snr_db) for snr_db in (np.inf, 10))
    noise = noisy.moving - clean.moving
    np.testing.assert_allclose(noise.var(), 0.1, rtol=0.05)
    np.testing.assert_array_equal(noisy.fixed, clean.fixed)


def test_the_bound_is_that_of_the_slopes():
    """Of a wave along one axis alone: sigma / sqrt(sum of squared slopes), one axis."""
    pairs = scenes.pairs(2, rank=1, size=64, cut=0.05)
    for fixed, bound in zip(pairs.fixed[..., 0], pairs.crb):
        slopes = np.gradient(fixed)[2:-2]
        np.testing.assert_allclose(bound[0], 1 / np.sqrt(np.sum(slopes**2)), rtol=0.1)


def test_a_period_is_a_match():
    pairs = scenes.periodic(2, snr_db=100)
    for fixed, moving, shift in zip(pairs.fixed[..., 0], pairs.moving[..., 0], pairs.shifts.astype(int)):
        for y, x in ((0, 0), (6, 0), (-6, 6)):
            at = shift + [y, x]
            at = (at + 6) % 12 - 6
            window = tuple(slice(10 + one, 10 + one + 64) for one in at)
            np.testing.assert_allclose(moving[window], fixed, atol=1e-3)


def test_calibration_error():
    confidence = np.array([0.05] * 10 + [0.95] * 10)
    assert studies.calibration_error(confidence, confidence > 0.5) == pytest.approx(0.05)
    assert studies.calibration_error(confidence, confidence < 0.5) == pytest.approx(0.95)


def test_sets_cover_by_their_level(rng):
    """Drawn from the posterior itself, the truth is in the 90 % set nine times of ten."""
    posterior = rng.dirichlet(np.full(25, 0.3), 4000).reshape(-1, 5, 5)
    drawn = np.array([rng.choice(25, p=one.ravel()) for one in posterior])
    shifts = np.stack(np.unravel_index(drawn, (5, 5)), axis=-1) - 2
    assert studies._covered(posterior, shifts).mean() == pytest.approx(0.9, abs=0.02)
    assert studies._flatness(np.full((1, 5, 5), 0.04))[0] == pytest.approx(1)
    assert studies._flatness(np.eye(25)[:1].reshape(1, 5, 5))[0] == pytest.approx(0, abs=1e-6)


def test_turned_pairs_are_turned_as_they_say():
    """The moving patch, read by SciPy through the true transform, is the fixed one."""
    pairs = scenes.turned(3, size=32, margin=16, cut=0.05, rotation=30.0, scale=0.2, shear=10.0)
    for fixed, moving, transform in zip(pairs.fixed[..., 0], pairs.moving[..., 0], pairs.transforms):
        grid = np.stack(np.meshgrid(*[np.arange(32) - 16] * 2, indexing="ij"))
        at = np.einsum("ij,jrc->irc", transform[:2, :2], grid) + transform[:2, 2, None, None] + 32
        back = scipy.ndimage.map_coordinates(moving, at, order=5)
        np.testing.assert_allclose(back, fixed, atol=0.02)


@pytest.fixture
def _without_tracing():
    """Functions of a single call: to trace them takes longer than to run them."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.usefixtures("_without_tracing")
def test_errors_of_geometry_are_told(monkeypatch):
    monkeypatch.setattr(studies, "SEARCHES", {"rotation 5": {"max_rotation": 5.0}})
    monkeypatch.setattr(studies, "GEOMETRY_MEASURES", ("ncc",))
    (row,) = studies.geometry(2)
    assert row["rotation_largest"] < 0.3
    table = command.geometry_table([row, {**row, "measure": "mse", "rotation_largest": 0.31}])
    assert table.count("missed") == 1


def test_coverage_is_marked():
    kinds = {"0 dB": {"covered": 0.9, "flatness": 0.0}}
    table = command.sets_table(
        [{"measure": "ncc", "covered": 0.9, "kinds": kinds}, {"measure": "mi", "covered": 0.93, "kinds": kinds}]
    )
    assert table.count("missed") == 1
    assert "| mi | 93.0 **missed** %" in table


@pytest.mark.parametrize("size", [(32, 32), (33, 31)])
@pytest.mark.parametrize("program", [name for name in rivals._PROGRAMS if "tfalign" not in name])
def test_rivals_transforms_are_in_our_coordinates(program, size):
    """Grids of even and odd sizes: whoever counts from another centre is half a pixel off."""
    pairs = scenes.turned(2, size=52, margin=16, cut=0.05, rotation=2.0, scale=0.05, shift=2.0)
    rows, columns = (slice(26 - n // 2, 26 - n // 2 + n) for n in size)
    # Without its first row an even grid keeps its centre.
    found, _ = rivals._PROGRAMS[program](
        pairs._replace(fixed=pairs.fixed[:, rows, columns], moving=pairs.moving[:, 1:]), {"scale": 0.05}
    )
    assert np.max(rivals.corner_error(found, pairs.transforms, size)) < 0.4


def test_what_linear_keeps_is_the_cosine():
    for row in studies.kept():
        if row["interpolation"] == "linear":
            assert row["kept"] == pytest.approx(np.cos(np.pi * row["wave"]), abs=0.01)


@pytest.mark.usefixtures("_without_tracing")
def test_the_command_writes_its_results(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(studies, "MEASURES", ("ncc",))
    monkeypatch.setattr(studies, "CUTS", (0.1,))
    monkeypatch.setattr(studies, "SEARCHES", {"rotation 5": {"max_rotation": 5.0}})
    monkeypatch.setattr(studies, "GEOMETRY_MEASURES", ("ncc",))
    monkeypatch.setattr(rivals, "_DRAWN", {"rigid 5": {"rotation": 5.0}})
    monkeypatch.setattr(rivals, "_PROGRAMS", {name: rivals._PROGRAMS[name] for name in list(rivals._PROGRAMS)[:3:2]})
    command.main(pairs=4)
    text = (tmp_path / "registration.md").read_text()
    assert "| tfalign, ncc | 100 %, 0.0" in text
    assert "| cv2.findTransformECC | 100 %, 0.0" in text
    assert "| ncc | 0.02 | 0.0" in text
    assert "| rotation 5 | 0.0" in text
    assert (tmp_path / "registration.png").stat().st_size > 10_000

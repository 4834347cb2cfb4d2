import collections

import numpy as np
import pytest

from tfalign.data import split

FRACTIONS = (0.7, 0.2, 0.1)


@pytest.mark.parametrize(("count", "wanted"), [(100, (70, 20, 10)), (3, (1, 1, 1)), (5, (3, 1, 1)), (11, (8, 2, 1))])
def test_every_file_belongs_to_one_set(count, wanted):
    names = split.by_file(count, fractions=FRACTIONS, seed=4)
    assert len(names) == count
    counts = collections.Counter(names)
    assert tuple(counts[name] for name in split.SETS) == wanted
    assert names == split.by_file(count, fractions=FRACTIONS, seed=4)
    if count > 10:
        assert names != split.by_file(count, fractions=FRACTIONS, seed=5)


def test_sets_without_a_fraction_stay_empty():
    assert split.by_file(2, fractions=(1.0, 0.0, 0.0)) == ["train", "train"]
    assert sorted(split.by_file(2, fractions=(0.5, 0.0, 0.5))) == ["test", "train"]


def test_groups_stay_together():
    groups = [f"patient {index % 7}" for index in range(50)]
    names = split.by_file(50, fractions=(0.6, 0.2, 0.2), groups=groups, seed=1)
    of_group = collections.defaultdict(set)
    for group, name in zip(groups, names, strict=True):
        of_group[group].add(name)
    assert all(len(found) == 1 for found in of_group.values())
    assert set(names) == set(split.SETS)


@pytest.mark.parametrize("shape", [(103,), (40, 101), (99, 40, 20)])
def test_regions_tile_the_file_and_share_nothing(shape):
    orders = set()
    for number in range(12):
        owners = np.zeros(shape, int)
        regions = split.by_region(shape, fractions=FRACTIONS, number=number, seed=2)
        assert [name for name, _ in regions] == [
            n for n, _ in split.by_region(shape, fractions=FRACTIONS, number=number, seed=2)
        ]
        for _, region in regions:
            owners[region] += 1
            assert [part != slice(None) for part in region] == [size == max(shape) for size in shape]
        assert (owners == 1).all()
        shares = {name: np.ones(shape)[region].size / np.prod(shape) for name, region in regions}
        np.testing.assert_allclose([shares[name] for name in split.SETS], FRACTIONS, atol=0.01)
        orders.add(tuple(name for name, _ in regions))
    assert len(orders) > 2


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: split.by_file(9, fractions=(0.5, 0.4, 0.2)), ValueError, r"sum to 1. Received: fractions=\(0.5, 0.4"),
        (lambda: split.by_file(9, fractions=(0.5, 0.5)), ValueError, r"fractions=\(0.5, 0.5\)"),
        (lambda: split.by_file(9, fractions=(1.5, -0.5, 0)), ValueError, "fractions=-0.5"),
        (lambda: split.by_file(2, fractions=FRACTIONS), ValueError, "3 sets need as many files.*=2.*Split by region"),
        (lambda: split.by_file(9, fractions=FRACTIONS, groups=[0, 1, 2] * 2), ValueError, "groups=6, files=9"),
        (lambda: split.by_file(9, fractions=FRACTIONS, groups=[0, 1] * 4 + [0]), ValueError, "files or groups=2"),
        (lambda: split.by_region((2, 2), fractions=FRACTIONS), ValueError, r"a pixel for each set.*shape=\(2, 2\)"),
    ],
)
def test_mistakes_are_named(call, error, text):
    with pytest.raises(error, match=text):
        call()

import pytest

from tests.jobs import small_run


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The folder of small pictures that `small_run` writes."""
    folder = tmp_path_factory.mktemp("files")
    small_run.write_files(folder)
    return folder

"""Files are replaced by complete ones only."""

import pytest

from gaunt_plugin._files import replacing


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.nequip.pth"
    path.write_text("old")
    return path


def test_a_complete_file_replaces_the_old_one(path):
    with replacing(path) as new:
        assert (new.name, new.parent.parent) == (path.name, path.parent)
        new.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def fail(new, half):
    if half:
        new.write_text("half")
    raise KeyError


@pytest.mark.parametrize("half", [True, False])
def test_the_old_one_survives_a_failure(path, half):
    with pytest.raises(KeyError), replacing(path) as new:
        fail(new, half)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_link_is_followed(path, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(path.name)
    with replacing(str(link)) as new:
        new.write_text("new")
    assert link.is_symlink()
    assert path.read_text() == "new"


def test_what_is_no_place_for_a_file(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"), replacing(path / "x/y"):
        pass
    with pytest.raises(IsADirectoryError, match="is a folder"), replacing(tmp_path):
        pass

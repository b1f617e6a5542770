"""Files are replaced by complete ones only. Standard library only."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A place for a new file, which becomes ``path`` at the end of the block.

    If the block raises, what was at ``path`` stays as it was.

    Args:
        path: the file to write; a link is followed.

    Yields:
        A path of the same name, in a temporary folder beside the file.

    Raises:
        OSError: there is no such folder, or ``path`` is a folder.
    """
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent}")
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".writing-") as folder:
        # The name is kept: torch and NequIP look at it.
        new = Path(folder, target.name)
        yield new
        new.replace(target)

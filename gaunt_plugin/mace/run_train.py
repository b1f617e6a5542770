"""MACE's training command with ``--plugin``, without any start-up hook.

``python -m gaunt_plugin.mace.run_train --plugin gaunt …`` is the same as
``mace_run_train --plugin gaunt …``.
"""

import contextlib
from collections.abc import Iterator

from mace import tools
from mace.cli import run_train

from gaunt_plugin.mace.plugin_option import build_arg_parser


@contextlib.contextmanager
def plugin_option() -> Iterator[None]:
    """Let MACE's training command take ``--plugin`` inside the ``with``."""
    stock = tools.build_default_arg_parser
    tools.build_default_arg_parser = build_arg_parser
    try:
        yield
    finally:
        tools.build_default_arg_parser = stock


def main() -> None:
    """Run MACE's training command on the process's own arguments."""
    with plugin_option():
        run_train.main()


if __name__ == "__main__":
    main()

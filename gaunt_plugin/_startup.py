"""The start-up hook that lets ``mace_run_train`` take ``--plugin``.

MACE 0.3 has no plugin option: its parser rejects ``--plugin`` before any code of ours could
run. The file ``gaunt_plugin_startup.pth``, which the wheel puts into site-packages, therefore
looks at the command line of every Python start and does nothing unless it says both
``run_train`` and ``--plugin`` or ``--config``; only then does it import this module and call
`install`. An error there is a line on stderr, and the program goes on. Nothing is said if the
package is gone and only the file was left. Once MACE has a plugin option of its own, both files
can go.

Set the environment variable ``GAUNT_PLUGIN_HOOK=0`` to switch the hook off.
``python -m gaunt_plugin.mace.run_train`` works without it.
"""

import os
import re
import sys

_PROGRAM = re.compile(
    r"(?:^|[/\\])mace_run_train(?:\.exe|-script\.py)?$"  # the console script
    r"|^(?:-\w*m)?mace\.cli\.run_train$"  # python -m mace.cli.run_train
    r"|(?:^|[/\\])mace[/\\]cli[/\\]run_train(?:\.py)?$"  # the file itself
)
# Deliberately loose: a false hit only means that the YAML file is parsed properly later on.
_PLUGIN_KEY = re.compile(r"""\bplugin["']?\s*:""")


def install() -> None:
    """Arrange for MACE's parser to know ``--plugin``, if this process asks for a plugin.

    Anything other than MACE's training command with a plugin named on its command line or in
    its configuration file leaves the interpreter as it was.
    """
    if os.environ.get("GAUNT_PLUGIN_HOOK") == "0":
        return
    # In a virtual environment some Pythons run every .pth file twice.
    if any(isinstance(finder, _ToolsFinder) for finder in sys.meta_path):
        return
    # What sys.argv keeps behind its first entry is also the end of orig_argv, so this is the
    # script, or the module behind -m (for which sys.argv[0] is only "-m" at start-up).
    program = sys.orig_argv[-len(sys.argv)]
    if _PROGRAM.search(program) and _asks_for_plugin(sys.argv[1:]):
        sys.meta_path.insert(0, _ToolsFinder())


def _asks_for_plugin(arguments: list[str]) -> bool:
    """Whether ``--plugin`` is given, or a configuration file that seems to set it."""
    following = [*arguments[1:], ""]
    for argument, value in zip(arguments, following, strict=True):
        option, equals, attached = argument.partition("=")
        if option == "--plugin":
            return True
        if option == "--config":
            try:
                with open(attached if equals else value, encoding="utf-8", errors="replace") as f:
                    if _PLUGIN_KEY.search(f.read()):
                        return True
            except OSError:
                pass  # MACE reports it
    return False


class _ToolsFinder:
    """A meta-path finder that serves ``mace.tools`` once and then removes itself."""

    def find_spec(self, name, path=None, target=None):
        if name != "mace.tools":
            return None
        import importlib.util

        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            loader, execute = spec.loader, spec.loader.exec_module

            def exec_module(module):
                del loader.exec_module  # the class's own method again
                execute(module)
                module.build_default_arg_parser = _build_arg_parser

            loader.exec_module = exec_module
        return spec


def _build_arg_parser():
    """Stand in for ``mace.tools.build_default_arg_parser``."""
    from gaunt_plugin.mace.plugin_option import build_arg_parser

    return build_arg_parser()

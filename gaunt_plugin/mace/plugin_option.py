"""The ``--plugin`` option of MACE's training command.

A plugin is a module that registers its blocks in MACE when it is imported. A distribution
declares it as an entry point of the group ``mace.plugins``. MACE has announced a group of this
name; no release of it reads one yet::

    [project.entry-points."mace.plugins"]
    gaunt = "gaunt_plugin.mace.plugin"

The module may define two functions, both optional:

* ``add_arguments(parser)`` adds options to MACE's parser;
* ``check_arguments(parser, args)`` looks at the parsed options before anything else happens
  and reports what cannot work with ``parser.error`` (or a ``ValueError``).

A plugin that fails to import is an error, since going on would train another model than the user
meant.
"""

import argparse
import functools
import importlib.metadata
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import NoReturn

PLUGIN_GROUP = "mace.plugins"


class PluginError(RuntimeError):
    """A plugin that was asked for cannot be used; the message says which and why."""


def installed_plugins() -> dict[str, list[importlib.metadata.EntryPoint]]:
    """Return the entry points of the group ``mace.plugins`` by name.

    More than one entry point under a name means that two distributions claim it.
    """
    plugins: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for entry_point in importlib.metadata.entry_points(group=PLUGIN_GROUP):
        plugins.setdefault(entry_point.name, []).append(entry_point)
    return dict(sorted(plugins.items()))


def load_plugins(names: Iterable[str]) -> list[ModuleType]:
    """Import the named plugins, each once, so that they register their blocks.

    Args:
        names: Names of entry points of the group ``mace.plugins``.

    Returns:
        The plugins' modules, in the order of the names.

    Raises:
        PluginError: If a name is unknown or claimed by two distributions, or if importing a
            plugin fails, which includes a plugin that refuses to replace an existing block.
    """
    installed = installed_plugins()
    modules = []
    for name in names:
        found = installed.get(name, [])
        if not found:
            known = ", ".join(installed) or "none"
            raise PluginError(f"unknown plugin {name!r}; installed plugins: {known}")
        if len(found) > 1:
            owners = " and ".join(sorted(_owner(entry_point) for entry_point in found))
            raise PluginError(f"plugin {name!r} is declared by {owners}; uninstall one of them")
        try:
            modules.append(found[0].load())
        except Exception as error:
            raise PluginError(
                f"plugin {name!r} could not be loaded: {type(error).__name__}: {error} "
                f"(`import {found[0].module}` in Python shows where)"
            ) from error
    return modules


def build_arg_parser(argv: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """Return MACE's training parser with ``--plugin`` and what the plugins add.

    The plugins are loaded here, since they decide which options and blocks there are.

    Args:
        argv: The command line to look for ``--plugin`` and ``--config`` in; ``sys.argv[1:]``
            by default.

    Returns:
        MACE's own parser, extended. After parsing, ``args.plugin`` is the list of names.
    """
    from mace.tools.arg_parser import build_default_arg_parser

    parser = build_default_arg_parser()
    parser.add_argument(
        "--plugin",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="plugins to load before training, by their names in the entry-point group "
        f"'{PLUGIN_GROUP}'; installed: {', '.join(installed_plugins()) or 'none'}",
    )
    try:
        names = requested_plugins(argv, parser.prog)
        modules = load_plugins(names)
        if modules:
            _offer_new_interactions(parser)
        for name, module in zip(names, modules, strict=True):
            _add_arguments(parser, name, module)
    except PluginError as error:
        _stop(parser, str(error))

    parse_args = parser.parse_args

    def parse_and_check_args(*args, **kwargs):
        namespace = parse_args(*args, **kwargs)
        namespace.plugin = _split_names(namespace.plugin)
        if namespace.plugin != names:
            parser.error(
                f"loaded the plugins {names} but parsed {namespace.plugin}; "
                "write --plugin and --config in full"
            )
        parser.error = functools.partial(_stop, parser)
        for module in modules:
            if hasattr(module, "check_arguments"):
                try:
                    module.check_arguments(parser, namespace)
                except ValueError as error:
                    parser.error(str(error))
        del parser.error
        return namespace

    parser.parse_args = parse_and_check_args
    return parser


def requested_plugins(argv: Sequence[str] | None = None, prog: str | None = None) -> list[str]:
    """Return the plugins that a command line, or else its configuration file, asks for.

    Args:
        argv: The command line; ``sys.argv[1:]`` by default.
        prog: The program's name for error messages.
    """
    parser = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    parser.add_argument("--plugin", nargs="+", action="extend", default=[], metavar="NAME")
    parser.add_argument("--config")
    args, _ = parser.parse_known_args(argv)
    # The command line overrides the file, as for every other option.
    if not args.plugin and args.config is not None:
        return _split_names(_plugins_in_file(args.config))
    return _split_names(args.plugin)


def _plugins_in_file(path: str) -> list[str]:
    """Read the key ``plugin``, a string or a list, of a YAML file; MACE reports bad files."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            settings = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    value = settings.get("plugin") if isinstance(settings, dict) else None
    if value is None:
        return []
    return [str(item) for item in (value if isinstance(value, list) else [value])]


def _stop(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """Like ``parser.error``, whose three screens of usage hide the sentence that matters."""
    parser.exit(2, f"{parser.prog}: error: {message}\n")


def _split_names(values: Iterable[str]) -> list[str]:
    """Split at commas and keep the first of equal names."""
    names = (name.strip() for value in values for name in value.split(","))
    return list(dict.fromkeys(name for name in names if name))


def _owner(entry_point: importlib.metadata.EntryPoint) -> str:
    distribution = entry_point.dist
    return distribution.metadata["Name"] if distribution is not None else entry_point.value


def _offer_new_interactions(parser: argparse.ArgumentParser) -> None:
    """Add the interaction blocks that plugins registered to the parser's closed choices."""
    from mace.modules import interaction_classes

    actions = {action.dest: action for action in parser._actions}
    stock = actions["interaction"].choices
    new = [name for name in interaction_classes if name not in stock]
    for dest in ("interaction", "interaction_first"):
        actions[dest].choices = [*actions[dest].choices, *new]


def _add_arguments(parser: argparse.ArgumentParser, name: str, module: ModuleType) -> None:
    if hasattr(module, "add_arguments"):
        try:
            module.add_arguments(parser)
        except argparse.ArgumentError as error:
            raise PluginError(f"plugin {name!r} adds an option that exists: {error}") from error

"""The ``--plugin`` option, tried with a plugin of the tests' own.

A process that imports MACE costs seconds, so most tests call the functions in this process; a
few run the real commands.
"""

import argparse
import ast
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

HOOK = "gaunt_plugin_startup.pth"
SOURCE = Path(__file__).parents[2] / "gaunt_plugin" / "_startup.pth"
BLOCK = "DummyPluginInteractionBlock"
WIDTH = "200"  # of the help text, which argparse wraps
TRAIN = [os.path.join(sysconfig.get_path("scripts"), "mace_run_train")]

PLUGIN_CODE = f"""
import sys
from mace import modules

if "{BLOCK}" in modules.interaction_classes:
    raise ValueError("{BLOCK} is registered already")
modules.interaction_classes["{BLOCK}"] = modules.interaction_classes["RealAgnosticInteractionBlock"]

def add_arguments(parser):
    parser.add_argument("--dummy_rank", type=int, default=2, help="an option of the plugin")

def check_arguments(parser, args):
    if args.dummy_rank < 1:
        parser.error("--dummy_rank must be positive")
    if args.dummy_rank > 9:
        raise ValueError("--dummy_rank must be below 10")
"""
# Prints what a process has imported and whose parser MACE has, when the process ends.
SITECUSTOMIZE = """
import atexit, sys

def report():
    tools = sys.modules.get("mace.tools")
    parser = tools and tools.build_default_arg_parser.__module__
    loaded = sorted(m for m in sys.modules if m.startswith(("gaunt_plugin", "dummy_plugin")))
    print("REPORT", dict(parser=parser, loaded=loaded), file=sys.stderr)

atexit.register(report)
"""


def make_distribution(folder: Path, name: str, code: str, entry: str | None = None) -> Path:
    """Write a module and the metadata that declare it as a plugin, as an installer would."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[mace.plugins]\n{entry or name} = {name}\n")
    return folder


@pytest.fixture
def plugin_folder(tmp_path):
    """A folder with the plugins `dummy` (works) and `broken` (does not import)."""
    folder = make_distribution(tmp_path / "plugins", "dummy_plugin", PLUGIN_CODE, "dummy")
    return make_distribution(folder, "broken_plugin", "import no_such_module", "broken")


@pytest.fixture
def option(plugin_folder, monkeypatch):
    """The module under test, with the plugins above installed and MACE restored afterwards."""
    from mace import modules

    from gaunt_plugin.mace import plugin_option

    monkeypatch.syspath_prepend(plugin_folder)
    monkeypatch.setattr(sys, "argv", ["mace_run_train"])
    monkeypatch.delitem(sys.modules, "dummy_plugin", raising=False)
    before = dict(modules.interaction_classes)
    yield plugin_option
    modules.interaction_classes.clear()
    modules.interaction_classes.update(before)


def run(command, plugin_folder, **env):
    """Run a command that sees the test's plugins; return it with what the process reported."""
    (plugin_folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    env = {**os.environ, "PYTHONPATH": str(plugin_folder), "COLUMNS": WIDTH, **env}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    errors, found, report = done.stderr.strip().rpartition("REPORT")
    assert found, f"exit code {done.returncode}, no report at the end of:\n{report}"
    return done, errors, ast.literal_eval(report.strip())


def write(folder, text):
    path = folder / "config.yaml"
    path.write_text(text)
    return str(path)


# Real commands


def test_the_package_is_installed_with_its_hook():
    files = importlib.metadata.files("gaunt-plugin")
    hooks = [file.locate() for file in files if file.name == HOOK]
    assert len(hooks) == 1, "install the package first: python tests/run.py --env mace"
    assert hooks[0].parent == Path(sysconfig.get_path("purelib"))
    assert hooks[0].read_text() == SOURCE.read_text()


def test_console_script_takes_plugin(plugin_folder):
    done, errors, report = run([*TRAIN, "--plugin", "dummy", "--help"], plugin_folder)
    assert done.returncode == 0, errors
    assert done.stdout.count(BLOCK) >= 2  # --interaction and --interaction_first
    assert "--dummy_rank" in done.stdout
    assert "dummy_plugin" in report["loaded"]


def test_module_takes_plugin_from_yaml_and_checks_it(plugin_folder):
    config = write(plugin_folder, "name: test\nplugin: dummy\ndummy_rank: 0\n")
    command = [sys.executable, "-m", "mace.cli.run_train", "--config", config]
    done, errors, _ = run(command, plugin_folder)
    assert done.returncode == 2
    assert "error: --dummy_rank must be positive" in errors


def test_own_command_needs_no_hook(plugin_folder):
    command = [sys.executable, "-m", "gaunt_plugin.mace.run_train", "--plugin=nonsense"]
    done, errors, report = run(command, plugin_folder, GAUNT_PLUGIN_HOOK="0")
    assert done.returncode == 2
    *_, last_line = errors.strip().splitlines()
    assert last_line.startswith(
        "run_train.py: error: unknown plugin 'nonsense'; installed plugins:"
    )
    assert "broken" in last_line
    assert "dummy" in last_line
    assert report["parser"] == "mace.tools.arg_parser"  # no patch outlives its `with`


def test_without_plugin_mace_is_as_before(plugin_folder, monkeypatch):
    from mace.tools import build_default_arg_parser

    config = write(plugin_folder, "name: test\n")
    done, _, report = run([*TRAIN, "--config", config, "--help"], plugin_folder)
    assert report["parser"] == "mace.tools.arg_parser"
    # to look into the file, and what NequIP would need
    ours = ["gaunt_plugin", "gaunt_plugin._nequip_hook", "gaunt_plugin._startup"]
    assert report["loaded"] == ours
    monkeypatch.setattr(sys, "argv", TRAIN)
    monkeypatch.setenv("COLUMNS", WIDTH)
    _, usage, text = done.stdout.partition("usage: ")  # a word about cuEquivariance comes first
    assert usage + text == build_default_arg_parser().format_help()


def test_hook_can_be_switched_off(plugin_folder):
    command = [*TRAIN, "--name=test", "--plugin", "dummy"]
    done, errors, report = run(command, plugin_folder, GAUNT_PLUGIN_HOOK="0")
    assert done.returncode == 2
    assert "unrecognized arguments: --plugin dummy" in errors
    assert "dummy_plugin" not in report["loaded"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "pass"],
        ["-c", "pass", "--plugin", "dummy"],  # another program's option
        ["-c", "pass", "mace_run_train"],  # the name alone
    ],
)
def test_other_commands_import_nothing_of_the_package(plugin_folder, arguments):
    done, _, report = run([sys.executable, *arguments], plugin_folder)
    assert done.returncode == 0
    assert report["loaded"] == []


@pytest.mark.parametrize(
    ("startup", "said"),
    [
        ("def install(): raise RuntimeError('two\\nlines')", r"RuntimeError('two\nlines')"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("def install(", "SyntaxError"),
        ("", "cannot import name 'install'"),
        ("def install(): pass", None),
        (None, None),  # the file was left behind by an uninstallation
    ],
)
@pytest.mark.parametrize("folder_left", [True, False])
def test_an_error_in_the_hook_is_one_line(tmp_path, startup, said, folder_left):
    shutil.copy(SOURCE, tmp_path / HOOK)
    if startup is not None or folder_left:
        (tmp_path / "gaunt_plugin").mkdir()
    if startup is not None:
        (tmp_path / "gaunt_plugin" / "_startup.py").write_text(startup)
    code = "import site, sys; site.addsitedir(sys.argv[1]); print('goes on')"
    command = [sys.executable, "-S", "-c", code, str(tmp_path), "mace_run_train", "--plugin", "x"]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, cwd=tmp_path, check=True
    )
    assert done.stdout == "goes on\n"
    if said is None:
        assert done.stderr == ""
    else:
        assert done.stderr.startswith("gaunt_plugin could not prepare --plugin for MACE: ")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


# The hook's own decisions


@pytest.fixture
def finders(monkeypatch):
    """Run the hook as if at the start of a command line; return the finders it installs."""
    from gaunt_plugin import _startup

    def install(program, arguments):
        monkeypatch.setattr(sys, "orig_argv", ["python", *program, *arguments])
        monkeypatch.setattr(sys, "argv", [program[0], *arguments])
        monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
        before = list(sys.meta_path)
        _startup.install()
        _startup.install()  # as in a virtual environment, where .pth files may run twice
        return [finder for finder in sys.meta_path if finder not in before]

    return install


@pytest.mark.parametrize(
    ("program", "is_mace"),
    [
        (["/env/bin/mace_run_train"], True),
        (["-u", "/env/bin/mace_run_train"], True),  # torchrun
        ([r"C:\env\Scripts\mace_run_train.exe"], True),
        (["-X", "dev", "-m", "mace.cli.run_train"], True),
        (["-mmace.cli.run_train"], True),
        (["/site-packages/mace/cli/run_train.py"], True),
        (["-m", "gaunt_plugin.mace.run_train"], False),
        (["my_run_train.py"], False),
        (["my_script.py"], False),
    ],
)
def test_hook_knows_the_training_command(finders, program, is_mace):
    arguments = ["--plugin", "mace_run_train"]  # the name as an argument does not count
    assert len(finders(program, arguments)) == is_mace


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("plugin: dummy\n", True),
        ("name: x\n'plugin' : [dummy]\n", True),
        ('{"name": "x", "plugin": "dummy"}', True),
        ("name: plugin\nwandb_plugin: no\n", False),
        (None, False),  # no such file: MACE says so
    ],
)
@pytest.mark.parametrize("joined", [False, True])
def test_hook_looks_for_plugin_in_the_config(finders, tmp_path, text, asks, joined):
    path = write(tmp_path, text) if text is not None else str(tmp_path / "missing.yaml")
    arguments = [f"--config={path}"] if joined else ["--config", path]
    assert len(finders(["mace_run_train"], arguments)) == asks


# Parser and plugins, in this process


@pytest.mark.parametrize(
    "arguments",
    [
        ["--plugin", "dummy"],
        ["--plugin", "dummy", "dummy"],
        ["--plugin=dummy,dummy"],
        ["--plugin", "dummy", "--plugin", "dummy"],
        ["--config", "plugin: dummy"],
        ["--config", "plugin: dummy, dummy"],
        ["--config", "plugin: [dummy]"],
        ["--config", "plugin: broken", "--plugin", "dummy"],  # the command line wins
    ],
)
def test_ways_to_name_a_plugin(option, tmp_path, arguments):
    if arguments[0] == "--config":
        arguments[1] = write(tmp_path, arguments[1] + "\n")
    arguments += ["--name=test", f"--interaction={BLOCK}", "--dummy_rank=3"]
    args = option.build_arg_parser(arguments).parse_args(arguments)
    assert args.plugin == ["dummy"]
    assert args.interaction == BLOCK
    assert args.dummy_rank == 3


def test_parser_without_plugin_gives_mace_its_own_arguments(option):
    from mace.tools import build_default_arg_parser, check_args

    arguments = ["--name=test", "--hidden_irreps=16x0e + 16x1o", "--E0s", "{1: -13.6}"]
    stock = vars(build_default_arg_parser().parse_args(arguments))
    args = option.build_arg_parser(arguments).parse_args(arguments)
    assert vars(args) == {**stock, "plugin": []}
    check_args(args)
    with pytest.raises(SystemExit):
        option.build_arg_parser([]).parse_args(["--name=test", f"--interaction={BLOCK}"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense", "unknown plugin 'nonsense'; installed plugins: broken, dummy"),
        ("broken", "plugin 'broken' could not be loaded: ModuleNotFoundError: No module named"),
    ],
)
def test_plugin_that_cannot_be_used_stops_in_one_sentence(option, capsys, name, message):
    with pytest.raises(SystemExit) as stop:
        option.build_arg_parser(["--plugin", name])
    assert stop.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"mace_run_train: error: {message}")
    assert errors.count("\n") == 1


def test_collisions_are_errors(option, tmp_path, monkeypatch):
    [module] = option.load_plugins(["dummy"])
    assert option.load_plugins(["dummy"]) == [module]  # imported once

    other = make_distribution(tmp_path / "other", "other_plugin", PLUGIN_CODE, "other")
    monkeypatch.syspath_prepend(other)
    with pytest.raises(option.PluginError, match=f"'other' .* ValueError: {BLOCK} is registered"):
        option.load_plugins(["other"])

    twin = make_distribution(tmp_path / "twin", "twin_plugin", PLUGIN_CODE, "dummy")
    monkeypatch.syspath_prepend(twin)
    with pytest.raises(option.PluginError, match="'dummy' is declared by dummy_plugin and twin"):
        option.load_plugins(["dummy"])


def test_problems_are_reported_before_training(option, capsys):
    arguments = ["--name=test", "--plugin=dummy", "--dummy_rank=10"]
    parser = option.build_arg_parser(arguments)
    assert isinstance(parser, argparse.ArgumentParser)
    with pytest.raises(SystemExit):
        parser.parse_args(arguments)
    # one sentence, without MACE's three screens of usage
    assert capsys.readouterr().err == "mace_run_train: error: --dummy_rank must be below 10\n"
    with pytest.raises(SystemExit):  # parsing what the parser was not built for
        parser.parse_args(["--name=test"])
    assert "loaded the plugins ['dummy'] but parsed []" in capsys.readouterr().err

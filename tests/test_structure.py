"""The house: commands and four modules at the root, six rooms, imports that point one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = {"dataset", "models", "engine", "utils"}
COMMANDS = {file.stem for file in ROOT.glob("*.py")} - MODULES
TRAIN_SCRIPTS = sorted(name for name in COMMANDS if name.startswith("train_"))
ROOMS = {"frames", "simulator", "evaluation", "viewing", "study", "runtime"}
# What each may import directly of ours, besides itself. What is not named may import the rest.
MAY_IMPORT = {
    "cmkd.runtime": set(),
    "cmkd.frames": {"cmkd.runtime"},
    "cmkd.simulator": {
        "cmkd.runtime.files",
        "cmkd.frames.annotations",
        "cmkd.frames.layout",
        "cmkd.frames.tone",
    },
    "utils": {"cmkd.frames.annotations", "cmkd.runtime"},
    "dataset": {"utils", "cmkd.frames", "cmkd.runtime"},
    "models": {"cmkd.runtime"},
    "cmkd.evaluation": {"dataset", "models", "utils", "cmkd.frames", "cmkd.runtime"},
    "engine": {
        "dataset",
        "utils",
        "cmkd.evaluation",
        "cmkd.runtime",
        "cmkd.viewing.tensorboard_log",
    },
}
FILES = sorted(
    file
    for place in (".", "cmkd", "benchmarks", "tests")
    for file in (ROOT / place).glob("*.py" if place == "." else "**/*.py")
)


def module_of(file):
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def own_imports(file):
    """The modules of this repository that a file imports, anywhere in it."""
    ours = {module_of(other) for other in FILES}
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            names.update(members & ours or {node.module})
    return names & ours


def within(module, places):
    return any(module == place or module.startswith(f"{place}.") for place in places)


def test_the_root_is_understood_at_a_glance():
    assert len(COMMANDS | MODULES) <= 20
    assert {
        folder.name for folder in (ROOT / "cmkd").iterdir() if (folder / "__init__.py").is_file()
    } == ROOMS


@pytest.mark.parametrize("place", MAY_IMPORT)
def test_imports_point_one_way(place):
    for file in FILES:
        if within(module_of(file), [place]):
            allowed = MAY_IMPORT[place] | {place}
            foreign = {name for name in own_imports(file) if not within(name, allowed)}
            assert not foreign, f"{module_of(file)} imports {foreign}"


def test_nothing_but_tests_and_benchmarks_imports_a_command():
    for file in FILES:
        if file.parent == ROOT or within(module_of(file), ["cmkd"]):
            assert not own_imports(file) & COMMANDS, module_of(file)


@pytest.mark.parametrize("name", TRAIN_SCRIPTS)
def test_train_scripts_have_the_same_blocks(name):
    text = (ROOT / f"{name}.py").read_text()
    assert 50 <= len(text.splitlines()) <= 120
    places = [text.index(f"    # {block}") for block in ("Data", "Network", "Loss", "Optimizer")]
    assert places == sorted(places)


def test_what_must_start_fast_needs_no_torch():
    code = (
        "import sys, cmkd.runtime.files, cmkd.simulator.cameras; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_training_imports_no_checker_and_no_drawing():
    code = (
        "import sys, train_baseline; "
        "sys.exit(any(name.startswith(('check_data', 'cmkd.viewing')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_checkpoints_are_never_unpickled_as_code():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), module_of(file)


def test_every_file_of_the_package_is_in_the_table():
    table = (ROOT / "docs/development.md").read_text()
    files = {file.name for file in (ROOT / "cmkd").rglob("*.py")} - {"__init__.py"}
    assert [name for name in sorted(files) if f"`{name}`" not in table] == []

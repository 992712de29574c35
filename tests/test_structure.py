"""The house: commands and four modules at the root, six rooms in one package, imports that point one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = {"dataset", "models", "engine", "utils"}
COMMANDS = {file.stem for file in ROOT.glob("*.py")} - MODULES
TRAIN_SCRIPTS = sorted(name for name in COMMANDS if name.startswith("train_"))
ROOMS = {"frames", "simulator", "evaluation", "viewing", "study", "runtime"}
# What each may import directly of ours, besides itself; what is not named may import everything but commands.
MAY_IMPORT = {
    "cmkd.runtime": {"utils"},
    "cmkd.frames": {"utils", "cmkd.runtime"},
    "cmkd.simulator": {"cmkd.runtime.files", "cmkd.frames.tone"},
    "utils": {"cmkd.runtime"},
    "dataset": {"check_data", "utils", "cmkd.frames", "cmkd.runtime"},
    "models": set(),
    "cmkd.evaluation": {"engine", "dataset", "models", "utils", "cmkd.frames", "cmkd.runtime"},
    "engine": {"dataset", "utils", "cmkd.evaluation", "cmkd.runtime", "cmkd.viewing.tensorboard_log"},
}
FILES = sorted(file for place in (".", "cmkd", "benchmarks", "tests")
               for file in (ROOT / place).glob("*.py" if place == "." else "**/*.py"))


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
    assert {folder.name for folder in (ROOT / "cmkd").iterdir() if (folder / "__init__.py").is_file()} == ROOMS


@pytest.mark.parametrize("place", MAY_IMPORT)
def test_imports_point_one_way(place):
    for file in FILES:
        if within(module_of(file), [place]):
            allowed = MAY_IMPORT[place] | {place}
            foreign = {name for name in own_imports(file) if not within(name, allowed)}
            assert not foreign, f"{module_of(file)} imports {foreign}"


@pytest.mark.parametrize("name", TRAIN_SCRIPTS)
def test_train_scripts_have_the_same_blocks(name):
    text = (ROOT / f"{name}.py").read_text()
    assert 50 <= len(text.splitlines()) <= 120
    places = [text.index(f"    # {block}") for block in ("Data", "Network", "Loss", "Optimizer")]
    assert places == sorted(places)


def test_checkpoints_are_never_unpickled_as_code():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), module_of(file)

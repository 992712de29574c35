"""The house: imports point one way, train scripts stay short, and no two scripts know each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = {file.stem for file in ROOT.glob("*.py")}
TRAIN_SCRIPTS = {name for name in MODULES if name.startswith("train_")}
ROOMS = {"cache", "distributed", "checkpoint", "failures", "layout", "dataset", "models", "engine", "evaluation",
         "score_files", "scoring", "comparison", "outcomes", "pictures", "hardware", "utils"}
MAY_IMPORT = {
    "distributed": set(),
    "hardware": set(),
    "utils": {"distributed", "hardware"},
    "models": set(),
    "evaluation": set(),
    "score_files": {"comparison", "evaluation", "utils"},
    "scoring": {"comparison", "dataset", "distributed", "engine", "evaluation", "layout", "models", "utils"},
    "comparison": {"evaluation"},
    "synthetic_scene": set(),
    "synthetic_cameras": {"synthetic_scene"},
    "make_synthetic": {"synthetic_cameras", "synthetic_scene"},
    "registration": {"utils"},
    "raw_images": {"utils"},
    "prepare_data": {"registration", "raw_images", "layout", "failures", "utils"},
    "layout": {"utils"},
    "contact_sheet": {"layout"},
    "check_data": {"contact_sheet", "layout", "utils"},
    "cache": {"utils"},
    "dataset": {"cache", "check_data", "layout", "distributed", "failures", "utils"},
    "checkpoint": {"failures", "utils"},
    "failures": {"distributed", "hardware", "utils"},
    "engine": {"board", "evaluation", "checkpoint", "failures", "distributed", "utils"},
    "board": {"outcomes", "pictures", "utils"},
    "outcomes": {"evaluation"},
    "pictures": {"outcomes"},
    "page": {"outcomes"},
    "curves": {"utils"},
    "feature_maps": {"models", "pictures"},
    "picture_folder": {"evaluation", "models", "pictures", "utils"},
    "test": ROOMS,
    "visualize": ROOMS | {"curves", "feature_maps", "page", "picture_folder"},
    "deployable": {"models"},
    "exported": {"models", "utils"},
    "export": ROOMS | {"deployable", "exported"},
    "jobs": {"failures", "hardware", "utils"},
    "results": {"comparison", "curves", "dataset", "evaluation", "layout", "score_files", "scoring", "utils"},
    "reproduce": ROOMS | {"jobs", "results"},
    **dict.fromkeys(TRAIN_SCRIPTS, ROOMS),
}


def own_imports(file):
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names & MODULES


def test_every_module_has_its_place():
    assert set(MAY_IMPORT) == MODULES
    assert {"train_teacher", "train_baseline", "train_cmkd_mse", "train_cmkd_adv"} <= TRAIN_SCRIPTS


@pytest.mark.parametrize("name", sorted(MAY_IMPORT))
def test_imports_point_one_way(name):
    assert own_imports(ROOT / f"{name}.py") <= MAY_IMPORT[name]


def test_the_rooms_stay_small():
    def lines(name):
        return len((ROOT / f"{name}.py").read_text().splitlines())

    assert all(lines(name) <= 120 for name in TRAIN_SCRIPTS)
    assert lines("test") <= 100
    assert lines("utils") <= 300


def test_checkpoints_are_never_unpickled_as_code():
    for file in ROOT.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), file.name

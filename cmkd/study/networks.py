"""The networks that a study compares: what trains each, and what it learns from."""

from dataclasses import dataclass
from pathlib import Path

from cmkd.frames.layout import TRUE_LABELS


@dataclass(frozen=True)
class Network:
    """One network of a study.

    `script` is the train script's, as in train_<script>.py.
    """

    script: str
    inputs: str = "RGB"
    unlabelled: bool = False  # learns from frames of the unlabelled list too
    labeller: str = ""  # the network that labels them
    sees_truth: bool = False  # has their true labels instead
    train_frames: int = 0  # learns from this many frames of the train list, if not 0

    @property
    def is_student(self) -> bool:
        """Whether it learns features from the teacher."""
        return self.script.startswith("cmkd")


NETWORKS = {
    "teacher": Network("teacher", "RGB + gated"),
    "baseline": Network("baseline"),
    "cmkd_mse": Network("cmkd_mse"),
    "cmkd_adv": Network("cmkd_adv"),
    "self_labels": Network("baseline", unlabelled=True, labeller="baseline"),
    "teacher_labels": Network("baseline", unlabelled=True, labeller="teacher"),
    "true_labels": Network("baseline", unlabelled=True, sees_truth=True),
    "teacher_labels_mse": Network("cmkd_mse", unlabelled=True, labeller="teacher"),
    "teacher_labels_adv": Network("cmkd_adv", unlabelled=True, labeller="teacher"),
    "features_mse": Network("cmkd_mse", unlabelled=True),
    "features_adv": Network("cmkd_adv", unlabelled=True),
    "baseline_100": Network("baseline", train_frames=100),
    "baseline_400": Network("baseline", train_frames=400),
    "baseline_1600": Network("baseline", train_frames=1600),
    "teacher_100": Network("teacher", "RGB + gated", train_frames=100),
    "teacher_400": Network("teacher", "RGB + gated", train_frames=400),
}
REFERENCES = ("teacher", "baseline")  # the gap between them is what a student closes
PUBLISHED = ("teacher", "baseline", "cmkd_mse", "cmkd_adv")
STUDENTS = tuple(name for name in NETWORKS if name not in REFERENCES)


def weights_file(study: Path, seed: int, name: str) -> Path:
    """Where a network's weights are: beside those of its seed, unless a script trains several."""
    script = NETWORKS[name].script
    folder = study / f"seed{seed}"
    return folder / f"{name}.pth" if script == name else folder / name / f"{script}.pth"


def label_folder(seed: int, network: Network) -> str | None:
    """The folder, in the data folder, of the labels of unlabelled frames that it learns from."""
    if network.sees_truth:
        return TRUE_LABELS
    return f"{network.labeller}_labels_seed{seed}" if network.labeller else None

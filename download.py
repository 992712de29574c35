"""The published weights and data, fetched from where the first author's copy links them.

    python download.py weights                        # to weights/published/
    python download.py weights --file teacher_Net.pth # takes a file that came another way
    python download.py data --accept-terms            # to data/

Nobody here could try whether the links are alive. What arrives is checked before it is used; an
interrupted download is resumed by the same command.
"""

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

from cmkd.evaluation.published import ORIGIN, hashes_of_lists
from cmkd.frames.annotations import DEFAULT_CLASSES
from cmkd.frames.archive import unpack
from cmkd.frames.layout import IMAGE_FOLDERS, LABEL_FOLDER
from cmkd.runtime.command_line import OneLineParser
from cmkd.runtime.failures import run
from cmkd.runtime.files import UserError, reason_of, save_json
from cmkd.runtime.weights import settings_file, sha256_of
from models import load_detector

DRIVE = "https://drive.google.com/uc?id="
DATA_ID = "1uz2vP5Bl_pmXPNCXk7ftttjvwtncCfGn"
FIRST_BYTES = 100_000  # of a file that may be a web page
TERMS = """\
The frames are from Seeing Through Fog, which is for registered users, for research only:
https://www.cs.princeton.edu/~fheide/AdverseWeatherFusion/
Register there and accept its terms first; then pass --accept-terms."""


@dataclass(frozen=True)
class Published:
    """A published checkpoint."""

    file: str
    drive_id: str
    channels: int
    val: float  # COCO mAP in percent, from the paper
    test: float


WEIGHTS = {
    "teacher": Published("teacher_Net.pth", "1FShIWdq_U213vWoCUk5EMh_nMfysmx4c", 6, 25.8, 27.5),
    "baseline": Published("baseline.pth", "1zT8UMh0ihzDLPP6Fy_E2G_7cAnUcluqr", 3, 22.5, 24.2),
    "mse": Published("KDfea_mse.pth", "16iMhJynAi39kJac0m0NUxXlxnOphwu4G", 3, 23.6, 25.4),
    "adv": Published("KDfea_adv.pth", "1m37Yb4bUKzZfilG4Xaeu0AjcR0hAzy8s", 3, 24.2, 26.0),
}


def fetch(url: str, file: Path) -> None:
    """Download to a file. Raises `UserError`, also for a web page in its place."""
    try:
        import gdown
    except ImportError:
        raise UserError("gdown is not installed: pip install gdown") from None
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        gdown.download(url, str(file), resume=True, use_cookies=False)
    except Exception as error:  # gdown's own, of requests, of the disk
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(
            f"{url} could not be downloaded ({lines[0] if lines else reason_of(error)}): try again "
            "later, or download it in a browser and pass --file"
        ) from None
    if not file.is_file():
        raise UserError(f"{url} could not be downloaded: download it in a browser and pass --file")
    try:
        refuse_web_page(file)
    except UserError:
        file.unlink()  # else gdown would take it for what was asked for the next time
        raise


def refuse_web_page(file: Path) -> None:
    """Raise `UserError` for a page that a server sent in place of a file."""
    with file.open("rb") as opened:
        start = opened.read(FIRST_BYTES).lstrip()
    if start[:1] != b"<":
        return
    text = start.decode("utf-8", "replace").lower()
    kind = "a web page"
    if "quota" in text or "too many users" in text:
        kind = "a page that says that too many people downloaded it: try again in a day"
    elif "sign in" in text or "accounts.google" in text:
        kind = "a sign-in page: the file is not public any more"
    raise UserError(f"{file} is not what was asked for but {kind}; or get it elsewhere, for --file")


# ------------------------------------------------------------------------------------------ weights


def take_weights(name: str, file: Path, to: Path) -> None:
    """Check a checkpoint, put it in its place, and write our JSON beside it. Raises `UserError`."""
    published = WEIGHTS[name]
    refuse_web_page(file)
    detector = load_detector(file)
    found = detector.settings
    wanted = {
        "channels": published.channels,
        "num_classes": 2,
        "backbone": "resnet50",
        "norm": "frozen",
    }
    for key, value in wanted.items():
        if found[key] != value:
            raise UserError(
                f"{file} has {key} {found[key]}, and the published {published.file} {value}: it is "
                "another file"
            )
    target = to / published.file
    if file.resolve() != target.resolve():
        to.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    content = {
        **found,
        "classes": list(DEFAULT_CLASSES),
        "ignore": None,
        "sha256": sha256_of(target),
        "published": {"network": name, "val_AP": published.val, "test_AP": published.test},
    }
    save_json(content, settings_file(target))
    print(f"{target}: {name}, {published.channels} channels, checked")


def name_of(file: Path) -> str:
    """Which published checkpoint a file is, by its name. Raises `UserError`."""
    for name, published in WEIGHTS.items():
        if file.name.lower() == published.file.lower():
            return name
    names = ", ".join(published.file for published in WEIGHTS.values())
    raise UserError(f"{file}: pass --only too, or call it as published: {names}")


def get_weights(args: argparse.Namespace) -> None:
    """Fetch the checkpoints, or take one that is there. Raises `UserError`."""
    if args.file:
        names = args.only or [name_of(args.file)]
        if len(names) > 1:
            raise UserError("--file is one checkpoint: name one with --only")
        take_weights(names[0], args.file, args.to)
    else:
        names = args.only or list(WEIGHTS)
        for name in names:
            target = args.to / WEIGHTS[name].file
            if target.is_file() and settings_file(target).is_file():
                print(f"{target} is there already")
                continue
            arriving = target.with_suffix(".arriving")
            fetch(args.base_url + WEIGHTS[name].drive_id, arriving)
            try:
                take_weights(name, arriving, args.to)
            finally:
                arriving.unlink(missing_ok=True)
    if "teacher" in names:
        teacher = args.to / WEIGHTS["teacher"].file
        print(f"next: python train_cmkd_mse.py --teacher {teacher}, or python test.py --published")


# --------------------------------------------------------------------------------------------- data


def prepared_folder(folder: Path) -> Path:
    """The folder of an unpacked archive that has the prepared layout. Raises `UserError`."""
    candidates = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]
    for candidate in candidates:
        if all((candidate / part).is_dir() for part in (*IMAGE_FOLDERS, LABEL_FOLDER)):
            return candidate
    raise UserError(
        f"the archive has no folder with {', '.join((*IMAGE_FOLDERS, LABEL_FOLDER))}: it is "
        "another one; if it is the official download, unpack it and pass it to prepare_data.py"
    )


def get_data(args: argparse.Namespace) -> None:
    """Fetch and unpack the prepared frames. Raises `UserError`."""
    print(TERMS)
    if not args.accept_terms:
        raise UserError("--accept-terms is missing: nothing was downloaded")
    to = args.to.resolve()
    if to.exists() and any(to.iterdir()):
        raise UserError(f"--to {args.to} holds something: name an empty or new folder")
    archive = args.file or to.with_name(f"{to.name}.archive")
    if not archive.is_file():  # whole ones of an earlier call stay if they were refused
        fetch(args.base_url + DATA_ID, archive)
    arriving = to.with_name(f"{to.name}.arriving")
    shutil.rmtree(arriving, ignore_errors=True)
    try:
        refuse_web_page(archive)
        count = unpack(archive, arriving)
        folder = prepared_folder(arriving)
        if to.exists():
            to.rmdir()
        shutil.move(folder, to)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
    if not args.file:
        archive.unlink()
    save_json({"lists": hashes_of_lists(args.to)}, args.to / ORIGIN)
    print(f"{args.to}: {count} files\nnext: python check_data.py {args.to}")


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    parser.add_argument("what", choices=["weights", "data"])
    parser.add_argument(
        "--only", choices=WEIGHTS, nargs="+", help="of the checkpoints (default: all four)"
    )
    parser.add_argument(
        "--file", type=Path, help="a checkpoint or an archive that came another way"
    )
    parser.add_argument(
        "--to", type=Path, help="folder (default: weights/published for weights, data for data)"
    )
    parser.add_argument(
        "--accept-terms", action="store_true", help="you are registered and accept the data's terms"
    )
    parser.add_argument(
        "--base-url", default=DRIVE, help="address before a file's id (default: Google Drive)"
    )
    args = parser.parse_args()
    if args.only and args.what == "data":
        parser.error("--only is about weights")
    args.to = args.to or Path("weights/published" if args.what == "weights" else "data")
    if args.file and not args.file.is_file():
        parser.error(f"--file {args.file} is missing")
    return args


def main() -> None:
    args = parse_arguments()
    if args.what == "weights":
        get_weights(args)
    else:
        get_data(args)


if __name__ == "__main__":
    run(main)

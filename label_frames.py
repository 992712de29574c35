"""Label frames that nobody labelled, with a trained network.

    python label_frames.py --weights weights/teacher.pth --list unlabelled_night --out machine

The labels go to DATA/<out>, a folder of their own: sure boxes as their class, doubtful ones as
DontCare, and an empty file for a frame without anybody. What is sure is chosen on the validation
list, for every network by the same rule. The same command continues after an interruption; files
that a human wrote or corrected are kept.
"""

import argparse
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from cmkd.evaluation.label_report import comparison_rows, counts_line, describe, threshold_rows
from cmkd.evaluation.labelling import Choice, choose_on, detect_views, label_texts
from cmkd.evaluation.pipeline import load_comparable, read_datasets, refuse_replacing
from cmkd.evaluation.tables import text_table
from cmkd.frames import label_exchange, machine_labels
from cmkd.frames.annotations import Label, read_labels
from cmkd.frames.layout import label_file, list_file, read_list, refuse_held_out_frames
from cmkd.frames.machine_labels import HUMAN, MACHINE, Record, whose_file
from cmkd.runtime import distributed, hardware
from cmkd.runtime.command_line import to_float
from cmkd.runtime.failures import StopRequest, run, warn
from cmkd.runtime.files import UserError, append_record, refuse_unwritable
from cmkd.runtime.weights import sha256_of
from cmkd.viewing.contact_sheet import save_picture
from cmkd.viewing.label_sheet import label_sheet
from dataset import SeeingThroughFog, make_loader
from models import Detector
from utils import NetworkParser

SHEET_ROWS = 12


def parse_arguments() -> argparse.Namespace:
    parser = NetworkParser(__doc__)
    parser.add_argument("--weights", type=Path, help="of the labeller, 3 or 6 channels")
    parser.add_argument("--list", help="DATA/<list>.txt, the frames to label")
    parser.add_argument(
        "--out", required=True, metavar="NAME", help="folder of the labels, in DATA"
    )
    parser.add_argument(
        "--val-list",
        default="val_night",
        help="DATA/<list>.txt on which thresholds are chosen (default: val_night)",
    )
    rule = parser.add_mutually_exclusive_group()
    rule.add_argument(
        "--precision",
        type=share,
        metavar="P",
        help="sure boxes: the lowest score with this precision on --val-list (default: the score "
        "with the best F1)",
    )
    rule.add_argument(
        "--thresholds",
        type=share,
        nargs=2,
        metavar=("SURE", "DOUBTFUL"),
        help="least scores of sure and of doubtful boxes, for all classes; needs no --val-list",
    )
    parser.add_argument(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        help="label the mirror image too, and merge both (default: if the AP on --val-list is "
        "higher; with --thresholds off)",
    )
    parser.add_argument(
        "--part", type=part_of, metavar="K/N", help="only part K of N, for several machines"
    )
    parser.add_argument(
        "--relabel", action="store_true", help="label again what a network labelled"
    )
    parser.add_argument(
        "--also-labelled", action="store_true", help="also frames that have a human's labels"
    )
    parser.add_argument(
        "--compare-list",
        help="human labels that the machine's are compared with (default: --val-list)",
    )
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE", help="also write a PNG of some labelled frames"
    )
    corrected = parser.add_mutually_exclusive_group()
    corrected.add_argument(
        "--import-coco",
        type=Path,
        metavar="FILE",
        help="instead of labelling, take corrected boxes from check_data.py's --export-coco",
    )
    corrected.add_argument(
        "--import-yolo", type=Path, metavar="DIR", help="the same from its --export-yolo"
    )
    args = parser.parse_args()
    imports = args.import_coco or args.import_yolo
    if not imports and not (args.weights and args.list):
        parser.error("--weights and --list are needed to label frames")
    if args.thresholds and args.thresholds[0] < args.thresholds[1]:
        parser.error("--thresholds SURE DOUBTFUL: DOUBTFUL must be at most SURE")
    if distributed.world_size() > 1:
        parser.error("torchrun is not for this script: --part K/N labels a part in each process")
    return args


def share(text: str) -> float:
    """argparse type: a number from 0 to 1."""
    if not 0 <= (value := to_float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def part_of(text: str) -> tuple[int, int]:
    """argparse type: `3/8`, part 3 of 8."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a part like 3/8")
    return int(part), int(parts)


# ------------------------------------------------------------------------ what the labels depend on


def deciding_settings(
    args: argparse.Namespace,
    frames: SeeingThroughFog,
    detector: Detector,
    val_set: SeeingThroughFog | None,
) -> dict[str, Any]:
    """What decides the labels of a frame: with the same settings a folder is continued."""
    rule = {"thresholds": args.thresholds, "mirror": bool(args.mirror)}
    if val_set:
        rule = {
            "val_list": args.val_list,
            "val_fingerprint": val_set.fingerprint,
            "precision": args.precision,
            "mirror": args.mirror,
        }
    return {
        "weights_sha256": sha256_of(args.weights),
        "classes": frames.classes,
        "ignored": list(frames.ignored),
        "min_size": detector.settings["min_size"],
        "max_size": detector.settings["max_size"],
        **rule,
    }


def refuse_other_settings(
    journal: Path, record: Record, settings: dict[str, Any], relabel: bool
) -> None:
    """Raise `UserError` if these settings cannot continue a folder, or replace it (`relabel`)."""
    before = dict(record.headers)
    if journal.name in before and not relabel:
        before = {journal.name: before[journal.name]}
    if relabel:
        # The parts are labelled again one after the other, each with its own journal.
        before = {
            name: header
            for name, header in before.items()
            if not machine_labels.same_partition(name, journal.name)
        }
    advice = "pass the same --part as before" if relabel else "pass --relabel to label them again"
    for name, header in before.items():
        for key in (*settings, *header["settings"]):
            was, now = header["settings"].get(key), settings.get(key)
            if was != now:
                raise UserError(
                    f"{journal.with_name(name)}: its labels were made with {key} {was}, not "
                    f"{now}: name another --out, or {advice}"
                )


def choose(
    args: argparse.Namespace,
    detector: Detector,
    val_set: SeeingThroughFog | None,
    names: list[str],
    headers: list[dict[str, Any]],
) -> Choice:
    """Thresholds and the use of mirror images.

    From the header of a journal with the same settings, if there is one: all parts of a list have
    the same thresholds.
    """
    if headers:
        return Choice(**{one.name: headers[0][one.name] for one in fields(Choice)})
    if not val_set:
        return Choice({name: tuple(args.thresholds) for name in names}, bool(args.mirror))
    loader = make_loader(val_set, args.batch_size, args.workers)
    plain, fused = detect_views(detector, loader, args.amp, args.mirror is not False)
    truth = val_set.ground_truth()
    return choose_on(truth, plain, fused, names, args.val_list, args.mirror, args.precision)


# --------------------------------------------------------------------------------------- the labels


def write_all(
    args: argparse.Namespace,
    detector: Detector,
    frames: SeeingThroughFog,
    choice: Choice,
    record: Record,
    journal: Path,
    own: range,
) -> int:
    """Label the frames with the indices `own` that are not done and have no file of a human.

    Returns how many.
    """
    folder = journal.parent
    machine_labels.remove_unfinished_files(folder, (frames.names[index] for index in own))
    to_do = [
        index
        for index in own
        if whose_file(record, folder, frames.names[index]) not in (MACHINE, HUMAN)
    ]
    if not to_do:
        return 0
    loader = make_loader(frames, args.batch_size, args.workers, indices=to_do)
    with StopRequest() as stop:
        for texts in label_texts(detector, loader, args.amp, choice):
            machine_labels.write_labels(folder, journal, record, texts)
            if stop.signal:
                stop.end_program("while labelling", "the same command continues")
    return len(to_do)


def begin_journal(
    args: argparse.Namespace,
    journal: Path,
    record: Record,
    settings: dict[str, Any],
    choice: Choice,
) -> None:
    """Write a header to the journal, unless the newest one says the same."""
    machine_labels.cut_unfinished_line(journal)
    before = record.headers.get(journal.name)
    if before and before["list"] == args.list and not args.relabel:
        return
    header = {
        "weights": args.weights,
        "weights_sha256": settings["weights_sha256"],
        "list": args.list,
        "part": args.part,
        "relabel": args.relabel,
        "settings": settings,
        **asdict(choice),
        "amp": args.amp,
        "date": time.strftime("%F %T"),
        "versions": hardware.versions(),
    }
    append_record(journal, header)


def indices_of_part(args: argparse.Namespace, frames: SeeingThroughFog) -> range:
    """The indices of the frames of --part, or of all."""
    part, parts = args.part or (1, 1)
    if own := range(part - 1, len(frames), parts):
        return own
    raise UserError(f"--part {part}/{parts}: {frames.list_file} has only {len(frames)} frames")


def label_names(frames: SeeingThroughFog) -> list[str]:
    """What each label of the detector is called in label files.

    The first class that it is made of, without those that training ignores.
    """
    return [next(name for name in group if name in frames.label_of) for group in frames.classes]


def human_labels(args: argparse.Namespace) -> dict[str, list[list[Label]]]:
    """The title and the labels of --compare-list; nothing if no list is needed or there."""
    list_name = args.compare_list or args.val_list
    file = list_file(args.data, list_name)
    if args.thresholds and not args.compare_list and not file.is_file():
        return {}
    labels = [read_labels(label_file(args.data, name)) for name in read_list(file)]
    return {f"{list_name}, human": labels}


def show(
    args: argparse.Namespace,
    frames: SeeingThroughFog,
    record: Record,
    own: range,
    new: int,
    human: dict[str, list[list[Label]]],
) -> None:
    """Print the counts and the comparison with human labels, and write the sheet."""
    folder = args.data / args.out
    names = [frames.names[index] for index in own]
    kept = sum(whose_file(record, folder, name) == HUMAN for name in names)
    labels = {name: read_labels(label_file(args.data, name, args.out)) for name in names}
    found = list(labels.values())
    print(f"{folder}: {counts_line(found, new, kept)}\n")
    sources = {f"{args.list}, {args.out}": found, **human}
    print(text_table(comparison_rows(set(frames.label_of), sources)))
    if args.sheet:
        picture = label_sheet(args.data, frames.folders, labels, SHEET_ROWS)
        save_picture(picture, args.sheet)
        print(f"{args.sheet}: {picture.width}x{picture.height}")
    try:
        machine_labels.refuse_disagreement(folder)
    except UserError as error:  # another part, which can still be labelled again
        warn(str(error))


def check_input(args: argparse.Namespace) -> Path:
    """The journal's file. Raises `UserError` for a folder or frames that must not be labelled."""
    refuse_replacing([args.sheet], [args.weights])
    folder = machine_labels.open_folder(args.data, args.out)
    kept_apart = [] if args.thresholds else [args.val_list]
    refuse_held_out_frames(args.data, [args.list], *kept_apart)
    if not args.also_labelled:
        machine_labels.refuse_labelled(args.data, args.list)
    if args.sheet:
        refuse_unwritable(args.sheet)
    return folder / machine_labels.journal_name(args.part)


def import_corrected(args: argparse.Namespace) -> None:
    """Take back the boxes that a human corrected. Raises `UserError`."""
    folder = machine_labels.open_folder(args.data, args.out)
    record = machine_labels.read_record(folder)
    journal = folder / machine_labels.journal_name()
    if args.import_yolo:
        found = label_exchange.read_yolo(args.import_yolo)
    else:
        found = label_exchange.read_coco(args.import_coco)
        label_exchange.refuse_lost_doubts(args.import_coco, folder, found)
    machine_labels.cut_unfinished_line(journal)
    counts = label_exchange.import_labels(folder, journal, record, found)
    print(
        f"{folder}: {counts['changed']} frames are a human's now, {counts['unchanged']} are "
        f"unchanged, {counts['kept']} that a human changed before are kept"
    )
    if left := label_exchange.not_named(folder, record, found):
        print(
            f"{left} frames are not in {args.import_yolo or args.import_coco}: they stay the "
            "machine's; an image without boxes must be listed"
            f"{' by an empty file' if args.import_yolo else ''}"
        )


def main() -> None:
    args = parse_arguments()
    if args.import_coco or args.import_yolo:
        import_corrected(args)
        return
    journal = check_input(args)
    detectors, classes, ignore = load_comparable([args.weights])
    [detector] = detectors.values()
    modality = detector.settings["modality"]
    frames = SeeingThroughFog(args.data, args.list, modality, classes, ignore, labels=None)
    own = indices_of_part(args, frames)
    val_set = None
    if not args.thresholds:
        datasets = read_datasets(args.data, [args.val_list], detectors, classes, ignore)
        [val_set] = datasets.values()
    human = human_labels(args)

    record = machine_labels.read_record(journal.parent)
    settings = deciding_settings(args, frames, detector, val_set)
    refuse_other_settings(journal, record, settings, args.relabel)
    refuse_unwritable(journal)
    same = {
        name: header
        for name, header in record.headers.items()
        if header["settings"] == settings and not (args.relabel and name == journal.name)
    }
    # Only files with these settings are done.
    record.recent = {name: record.recent[name] for name in same}

    hardware.start(args.device, args.amp)
    detector.to(args.device)
    choice = choose(args, detector, val_set, label_names(frames), list(same.values()))
    if choice.table:
        print(text_table(threshold_rows(choice.table)), end="\n\n")
    print(describe(choice, args.val_list))
    begin_journal(args, journal, record, settings, choice)
    new = write_all(args, detector, frames, choice, record, journal, own)
    show(args, frames, record, own, new, human)


if __name__ == "__main__":
    run(main)

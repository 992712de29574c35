"""Kill, starve and mislead the train scripts, and see whether they keep docs/reliability.md.

    python -m tests.torture --kills 20 --json docs/figures/reliability.json

Kills: each script is trained on simulated frames, killed (SIGKILL) at random moments and resumed
until it finishes; weights and log must be those of an uninterrupted run. Then damaged inputs,
exploits and a full disk: each must end in one line and exit code 2, with nothing run and nothing
overwritten, or be read as documented.
"""

import json
import os
import pickle
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from cmkd.runtime.command_line import OneLineParser, at_least
from cmkd.runtime.files import REPOSITORY, save_json
from cmkd.runtime.hardware import versions

SCRIPTS = ("train_teacher", "train_baseline", "train_cmkd_mse", "train_cmkd_adv")
TINY = (
    "--backbone resnet18 --init none --min-size 64 --rois 16 --proposals 50 --batch-size 2 "
    "--workers 1 --device cpu --epochs 2"
).split()
SHOWN = {True: "yes", False: "**no**", None: "not tried"}
LONGEST = 300  # seconds; a run that takes longer hangs


def call(script: str, *arguments: Any, file_size: int | None = None) -> subprocess.CompletedProcess:
    """Run a script; no file it writes may exceed `file_size` bytes, as on a full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))

    return subprocess.run(
        [sys.executable, REPOSITORY / f"{script}.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=LONGEST,
        preexec_fn=limit if file_size else None,
    )


def training(script: str, data: Path, home: Path, teacher: Path) -> list[Any]:
    """The arguments of a run in a folder of its own."""
    places = ["--data", data, "--out", home, "--run-dir", home / "run"]
    options = [*places, "--checkpoint-minutes", 1e-9, *TINY]
    return [*options, "--teacher", teacher] if "cmkd" in script else options


def results_of(script: str, home: Path) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """The best and last weights of a run, and its log without what is not computed."""
    best = torch.load(home / f"{script.removeprefix('train_')}.pth", weights_only=True)
    last = torch.load(home / "run/last.pth", weights_only=True)
    weights = {
        f"{part}.{name}": value
        for part, state in (
            ("best", best),
            ("last", last["model"]),
            ("also_trained", last["also_trained"]),
        )
        for name, value in state.items()
    }
    records = [json.loads(line) for line in (home / "run/log.jsonl").read_text().splitlines()]
    return weights, [
        {name: value for name, value in record.items() if not name.endswith("seconds")}
        for record in records
        if "epoch" in record
    ]


def kill_and_resume(
    script: str, data: Path, folder: Path, teacher: Path, kills: int
) -> dict[str, Any]:
    """Kill runs of a script so many times; count finished ones, and those that are identical."""
    started = time.monotonic()
    done = call(script, *training(script, data, folder / "whole", teacher))
    duration = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"{script} fails without being killed:\n{done.stderr}")
    weights, log = results_of(script, folder / "whole")
    chance, killed, runs, identical, failures = random.Random(0), 0, 0, 0, []
    with tqdm(total=kills, desc=script, unit="kill", disable=None) as progress:
        while killed < kills:
            home = folder / f"killed{runs}"
            while True:
                process = subprocess.Popen(
                    [
                        sys.executable,
                        REPOSITORY / f"{script}.py",
                        *map(str, training(script, data, home, teacher)),
                        "--resume",
                    ],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                try:
                    _, err = process.communicate(
                        timeout=chance.uniform(0.2, 1) * duration if killed < kills else None
                    )
                    break
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
                    killed += 1
                    progress.update()
            runs += 1
            if process.returncode:
                failures.append(err.strip().splitlines()[-1])
                continue
            ended = results_of(script, home)
            identical += (
                ended[1] == log
                and ended[0].keys() == weights.keys()
                and all(torch.equal(ended[0][name], weights[name]) for name in weights)
            )
            shutil.rmtree(home)
    return {
        "script": script,
        "kills": killed,
        "runs": runs,
        "identical": identical,
        "failures": failures,
    }


def edit(pattern: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    """Change the text of the first file of a data folder that fits the pattern."""

    def damage(data: Path) -> None:
        file = sorted(data.glob(pattern))[0]
        file.write_bytes(change(file.read_text()).encode())

    return damage


def replace(pattern: str, content: bytes | Image.Image | None) -> Callable[[Path], None]:
    """Replace the first such file by bytes or a picture; None removes it."""

    def damage(data: Path) -> None:
        file = sorted(data.glob(pattern))[0]
        if content is None:
            file.unlink()
        elif isinstance(content, bytes):
            file.write_bytes(content)
        else:
            content.save(file)

    return damage


def truncate(data: Path) -> None:
    file = sorted(data.glob("images/*.png"))[0]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def take_permission(data: Path) -> None:
    sorted(data.glob("images/*.png"))[0].chmod(0)


def rename_to_unicode(data: Path) -> None:
    name = (data / "train_night.txt").read_text().split()[0]
    for file in data.glob(f"*/{name}.*"):
        file.rename(file.with_name(f"nächtlich 雪{file.suffix}"))
    edit("train_night.txt", lambda text: text.replace(name, "nächtlich 雪"))(data)


def label(box: str) -> str:
    return f"Pedestrian 0 0 0 {box} 0 0 0 0 0 0 0\n"


# What is done to the data, and whether training must refuse it or read it.
INPUTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated PNG": (truncate, "refused"),
    "PNG of zero bytes": (replace("images/*.png", b""), "refused"),
    "text in a PNG": (replace("gated1/*.png", b"no picture"), "refused"),
    "slice of another size": (replace("gated1/*.png", Image.new("L", (80, 48))), "refused"),
    "RGB with one channel": (replace("images/*.png", Image.new("L", (160, 96))), "read as grey"),
    "RGB with 16 bits": (
        replace("images/*.png", Image.fromarray(np.zeros((96, 160), np.uint16))),
        "refused",
    ),
    "missing slice": (replace("gated2/*.png", None), "refused"),
    "missing labels": (replace("gated_labels/*.txt", None), "refused"),
    "text in labels": (
        edit("gated_labels/*.txt", lambda text: text + "no label at all\n"),
        "refused",
    ),
    "binary labels": (replace("gated_labels/*.txt", bytes(range(256))), "refused"),
    "NaN box": (edit("gated_labels/*.txt", lambda text: text + label("nan 1 2 3")), "refused"),
    "swapped corners": (
        edit("gated_labels/*.txt", lambda text: text + label("50 50 10 90")),
        "refused",
    ),
    "huge box": (
        edit("gated_labels/*.txt", lambda text: text + label("-1e30 -1e30 1e30 1e30")),
        "clipped",
    ),
    "box without area": (
        edit("gated_labels/*.txt", lambda text: text + label("5 5 5 9")),
        "left out",
    ),
    "binary list": (replace("train_night.txt", bytes(range(128, 256))), "refused"),
    "empty list": (replace("train_night.txt", b"\n\n"), "refused"),
    "name twice": (edit("train_night.txt", lambda text: text + text.split()[0] + "\n"), "refused"),
    "name ../frame": (edit("train_night.txt", lambda text: "../" + text), "refused"),
    "absolute name": (edit("train_night.txt", lambda text: "/etc/passwd\n" + text), "refused"),
    "CRLF list": (edit("train_night.txt", lambda text: text.replace("\n", "\r\n")), "read"),
    "list with a BOM": (edit("train_night.txt", lambda text: "\ufeff" + text), "read"),
    "unicode names": (rename_to_unicode, "read"),
    "permission denied": (take_permission, "refused"),
}


def verdict(
    done: subprocess.CompletedProcess, expected: str, written: list[Path]
) -> tuple[bool, str]:
    """Whether a call ended as it must, and its last line. If refused, `written` must not exist."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if expected != "refused":
        return done.returncode == 0 and not lines, f"exit code {done.returncode}"
    said = re.sub(r"/\S*/", ".../", lines[-1]) if lines else ""
    good = (
        done.returncode == 2
        and len(lines) == 1
        and "error: " in said
        and not any(file.exists() for file in written)
    )
    return good, said.partition("error: ")[2] or f"exit code {done.returncode}: {said}"


def damaged_inputs(data: Path, folder: Path) -> list[dict[str, Any]]:
    """Train a teacher on each damaged copy of the data."""
    rows = []
    for name, (damage, expected) in tqdm(
        INPUTS.items(), "damaged inputs", unit="case", disable=None
    ):
        if name == "permission denied" and os.geteuid() == 0:
            rows.append(
                {
                    "case": name,
                    "expected": expected,
                    "good": None,
                    "said": "not tried: root may read all",
                }
            )
            continue
        copy, home = folder / "copy", folder / "home"
        shutil.copytree(data, copy)
        damage(copy)
        done = call("train_teacher", *training("train_teacher", copy, home, home))
        good, said = verdict(done, expected, [home / "teacher.pth"])
        rows.append({"case": name, "expected": expected, "good": good, "said": said})
        for place in (copy, home):
            shutil.rmtree(place, ignore_errors=True)
    return rows


class Exploit:
    """Makes a file when it is unpickled as code."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.file}",)


def exploits(data: Path, folder: Path, whole: Path) -> list[dict[str, Any]]:
    """Give each reader of checkpoints one that would run code."""
    flag, payload, home = folder / "was_run", folder / "payload.pth", folder / "home"
    run_dir = folder / "resumed"
    readers = {
        "test.py --weights": ("test", ["--weights", payload, "--data", data]),
        "visualize.py --compare": (
            "visualize",
            ["--compare", payload, "--data", data, "--out", home / "g.png"],
        ),
        "--teacher": ("train_cmkd_mse", training("train_cmkd_mse", data, home, payload)),
        "--init": (
            "train_baseline",
            [*training("train_baseline", data, home, payload), "--init", payload],
        ),
        "last.pth": (
            "train_baseline",
            [*training("train_baseline", data, run_dir, payload), "--resume"],
        ),
    }
    rows = []
    for form, write in (
        ("zip", torch.save),
        ("pickle", lambda content, file: file.write_bytes(pickle.dumps(content))),
    ):
        for name, (script, arguments) in readers.items():
            write({"model": Exploit(flag), "arguments": {}}, payload)
            if name == "last.pth":
                shutil.rmtree(run_dir, ignore_errors=True)
                shutil.copytree(whole, run_dir)
                (run_dir / "run/previous.pth").unlink()
                shutil.copy(payload, run_dir / "run/last.pth")
            done = call(script, *arguments)
            lines = done.stderr.strip().splitlines()
            good = done.returncode == 2 and "Traceback" not in done.stderr and not flag.exists()
            rows.append(
                {
                    "case": f"exploit ({form}) as {name}",
                    "expected": "refused",
                    "good": good,
                    "said": re.sub(r"/\S*/", ".../", lines[-1]).partition("error: ")[2]
                    if lines
                    else "",
                }
            )
    return rows


def full_disk(data: Path, home: Path) -> dict[str, Any]:
    """Go on with a finished run where no file may grow beyond 1 MB, then with room again."""
    arguments = [*training("train_baseline", data, home, home), "--epochs", 3, "--resume"]
    before = (home / "baseline.pth").read_bytes()
    good, said = verdict(call("train_baseline", *arguments, file_size=1_000_000), "refused", [])
    kept = (home / "baseline.pth").read_bytes() == before
    return {
        "case": "disk full",
        "expected": "refused",
        "said": said,
        "good": good and kept and call("train_baseline", *arguments).returncode == 0,
    }


def main() -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument(
        "--kills", type=at_least(1), default=20, help="of each script (default: 20)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    args = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, teacher = folder / "data", folder / "train_teacher/whole/teacher.pth"
        call("make_synthetic", "--out", data, "--frames", 6, 4, 4, "--size", "160x96", "--seed", 1)
        kills = [
            kill_and_resume(script, data, folder / script, teacher, args.kills)
            for script in SCRIPTS
        ]
        whole = folder / "train_baseline/whole"
        cases = [
            *damaged_inputs(data, folder),
            *exploits(data, folder, whole),
            full_disk(data, whole),
        ]
    print("| script | SIGKILLs | runs ended | identical to the bit |\n|---|---|---|---|")
    for row in kills:
        print(
            f"| `{row['script']}.py` | {row['kills']} | {row['runs']} | {row['identical']} |",
            *row["failures"],
        )
    print("\n| input | expected | as expected | it said |\n|---|---|---|---|")
    for row in cases:
        print(f"| {row['case']} | {row['expected']} | {SHOWN[row['good']]} | {row['said']} |")
    if args.json:
        save_json(
            {"kills": kills, "cases": cases, "date": time.strftime("%F"), "versions": versions()},
            args.json,
        )
    bad = sum(row["good"] is False for row in cases) + sum(
        row["identical"] < row["runs"] for row in kills
    )
    sys.exit(f"{bad} not as promised" if bad else 0)


if __name__ == "__main__":
    main()

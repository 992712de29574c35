"""How fast one core simulates and stores frames, and with how much memory.

    python -m benchmarks.simulator --json docs/figures/simulator_speed.json

Each size has a process of its own. The first frame builds tables and is not counted.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cmkd.runtime.command_line import OneLineParser
from cmkd.runtime.files import REPOSITORY, save_json
from cmkd.simulator.rendering import plan_frames
from make_synthetic import DEFAULT_MIX, IMAGE_FOLDERS, LABEL_FOLDER, write_frame

AIMS = {(1280, 768): 3.0, (256, 160): 30.0}  # frames/s
FRAMES = {(1280, 768): 40, (256, 160): 200}


def measure_speed(size: tuple[int, int]) -> dict[str, float]:
    """Frames per second of wall time, and the peak memory of this process in MiB."""
    first, *frames = plan_frames([FRAMES[size] + 1, 0, 0], DEFAULT_MIX, 0)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for name in (*IMAGE_FOLDERS, LABEL_FOLDER):
            (out / name).mkdir()
        options = {"seed": 0, "size": size, "misaligned": True, "brightness": 1.0, "out": out}
        write_frame(first, **options)
        started = time.perf_counter()
        for frame in frames:
            write_frame(frame, **options)
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "frames": len(frames),
        "frames_per_second": round(len(frames) / seconds, 2),
        "peak_memory_MiB": round(peak),
    }


def measure_in_new_process(size: tuple[int, int]) -> dict[str, float]:
    """The result of `measure_speed` in a process of its own."""
    code = f"import json, benchmarks.simulator as b; print(json.dumps(b.measure_speed({size})))"
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE)
    return json.loads(process.stdout)


def main() -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse_args()
    figures = {}
    for size, aim in AIMS.items():
        figure = {**measure_in_new_process(size), "aim": aim}
        name = f"{size[0]}x{size[1]}"
        print(
            f"{name:>9}: {figure['frames_per_second']:6.2f} frames/s on one core (aim {aim:g}), "
            f"{figure['peak_memory_MiB']} MiB"
        )
        figures[name] = figure
    if options.json:
        # A process inherits the peak memory of the one that starts it, and this imports torch.
        from cmkd.runtime.hardware import versions

        save_json({"figures": figures, "versions": versions()}, options.json)


if __name__ == "__main__":
    main()

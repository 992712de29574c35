"""How fast one core simulates and stores frames, and with how much memory.

    python -m benchmarks.simulator --json docs/figures/simulator_speed.json

Each size is one process of its own; the first frame, which builds the tables, is not counted.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from make_synthetic import DEFAULT_MIX, FOLDERS, plan, write_frame

SIZES = {(1280, 768): 3.0, (256, 160): 30.0}  # aim, frames/s
FRAMES = {(1280, 768): 40, (256, 160): 200}


def measure(size: tuple[int, int], frames: int) -> dict[str, float]:
    """Frames per second of wall time and peak memory in MiB of this process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for name in FOLDERS:
            (out / name).mkdir()
        first, *rest = plan([frames + 1, 0, 0], DEFAULT_MIX, 0)
        write_frame(first, 0, size, True, 1.0, out)
        started = time.perf_counter()
        for frame in rest:
            write_frame(frame, 0, size, True, 1.0, out)
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"frames": frames, "frames_per_second": round(frames / seconds, 2), "peak_memory_MiB": round(peak)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    args = parser.parse_args()
    figures = {}
    for size, aim in SIZES.items():
        code = f"import json, simulator; print(json.dumps(simulator.measure({size}, {FRAMES[size]})))"
        done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True,
                              stdout=subprocess.PIPE)
        name = f"{size[0]}x{size[1]}"
        figures[name] = {**json.loads(done.stdout), "aim": aim}
        print(f"{name:>9}: {figures[name]['frames_per_second']:6.2f} frames/s on one core (aim {aim:g}), "
              f"{figures[name]['peak_memory_MiB']} MiB")
    from utils import save_json, versions  # not above: a process starts with its parent's peak, and this brings torch

    if args.json:
        save_json({"figures": figures, "versions": versions()}, args.json)


if __name__ == "__main__":
    main()

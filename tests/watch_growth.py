"""Watch whether a long run grows: run train.py for a while and look at its memory, files, threads and processes.

    python tests/watch_growth.py [--minutes 5] [options of train.py]

Prints a table and ends with status 1 if the last third of the time is above the first; half a minute of warm-up is
left out. Linux only, because it reads /proc.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
WARM_UP_SECONDS = 30
ALLOWED = {"memory MB": 1.03, "open files": 1.0, "threads": 1.0, "processes": 1.0}  # last third / first third


def look(pid: int) -> dict[str, float]:
    """Return what a process and its children hold now. Raises OSError if it has ended."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "memory MB": int(status["VmRSS"].split()[0]) / 1024,
        "open files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": int(status["Threads"]),
        "processes": len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    arguments, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "train.py", "--steps", "1000000", "--save-every", "5", "--eval-every", "10", *rest]
        process = subprocess.Popen([*command, "--out", str(run)], cwd=ROOT, stderr=subprocess.DEVNULL)
        while not (run / "metrics.jsonl").exists():
            if process.poll() is not None:
                return 1
            time.sleep(0.1)
        time.sleep(WARM_UP_SECONDS)
        looks, end = [], time.monotonic() + 60 * arguments.minutes
        while time.monotonic() < end:
            looks.append(look(process.pid))
            time.sleep(1)
        process.terminate()
        process.wait()
        steps = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    third = len(looks) // 3
    print(f"{arguments.minutes:g} minutes after warm-up, {steps} steps\n{'':<12}{'first third':>14}{'last third':>14}")
    grown = False
    for name, allowed in ALLOWED.items():
        first, last = (statistics.mean(row[name] for row in part) for part in (looks[:third], looks[-third:]))
        grown |= last > first * allowed + 0.5
        print(f"{name:<12}{first:>14.1f}{last:>14.1f}")
    print("it grows" if grown else "no growth")
    return int(grown)


if __name__ == "__main__":
    sys.exit(main())

"""Write the figures of runs for TensorBoard.

python -m lab.tensorboard runs/main && tensorboard --logdir runs/main
"""

import argparse
import sys
from pathlib import Path

from engine.run_folder import read_rows

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError:
    sys.exit("lab.tensorboard needs more packages: pip install -r requirements-lab.txt")


def main() -> None:
    parser = argparse.ArgumentParser("python -m lab.tensorboard", description="Write figures for TensorBoard.")
    parser.add_argument("folder", type=Path, help="a run folder, or a folder that holds some")
    folder = parser.parse_args().folder
    for file in [*folder.rglob("metrics.jsonl")] or sys.exit(f"lab.tensorboard: found no run in {folder}"):
        for old in file.parent.glob("events.out.tfevents.*"):  # of an earlier call: it would be shown as well
            old.unlink()
        with SummaryWriter(str(file.parent)) as writer:
            for row in read_rows(file):
                for name in (name for name, value in row.items() if isinstance(value, int | float)):
                    writer.add_scalar(name, row[name], row["step"], row.get("wall_s"))


if __name__ == "__main__":
    main()

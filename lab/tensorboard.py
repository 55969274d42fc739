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
    parser = argparse.ArgumentParser("python -m lab.tensorboard", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders that hold some")
    folders = parser.parse_args().folders
    files = sorted({file for folder in folders for file in folder.rglob("metrics.jsonl")})
    for file in files or sys.exit(f"lab.tensorboard: found no metrics.jsonl in {', '.join(map(str, folders))}"):
        for old in file.parent.glob("events.out.tfevents.*"):  # of an earlier call: it would be shown as well
            old.unlink()
        with SummaryWriter(str(file.parent)) as writer:
            for row in read_rows(file):
                for name in (name for name, value in row.items() if isinstance(value, int | float) and name != "step"):
                    writer.add_scalar(name, row[name], row["step"], walltime=row.get("wall_s"))
        print(f"wrote the figures of {file.parent}")


if __name__ == "__main__":
    main()

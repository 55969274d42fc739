"""The engine: the same tokens and gradients as the plain core, faster or on more devices, and what a run leaves behind.

sampler.py        draw the tokens of rollout.sample faster: cache written in place, chunks of rows, CUDA graphs
update.py         go through a batch as grpo.over_batches does: prompts run once, memory that runs out
parallel.py       several processes as one (torchrun): divided work, summed gradients, models split over them
load.py           choose these or the plain functions for a policy
memory.py         estimate what fits on a GPU before the first step
run_folder.py     write what a run leaves behind, and resume from it exactly
terminal.py       tell a person of a run: first lines, live figures, summary
command_line.py   make flags from the dataclasses of options
figures.py        count what a step did and cost; the tables of eval.py
runs.py           run several trainings side by side, for ablate.py
"""

from engine.sampler import sample

__all__ = ["sample"]

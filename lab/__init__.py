"""The lab: enter it to look at what training did. Training, evaluation and the table of ablate.py do without it.

    ask.py          ask a policy a problem of your own                       python -m lab.ask PROBLEM
    explain.py      one training step told in full, with real numbers        python train.py --explain
    awareness.py    how well predictions fit what happened                   python -m lab.awareness RUN
    compare.py      accuracy and its cost, variants over seeds               python -m lab.compare RUNS
    report.py       tables, charts and transcripts on one HTML page          python -m lab.report RUNS
    spend.py        at inference: predict first, then decide what to solve   python -m lab.spend EVALUATION
    tensorboard.py  the figures of runs for TensorBoard                      python -m lab.tensorboard RUNS
    bench.py        speed beside generate, TRL and math-verify               python -m lab.bench

report.py and tensorboard.py need more packages: pip install -r requirements-lab.txt
"""

"""The lab: enter it to look at what training did. Training, evaluation and the table of ablate.py do without it.

    explain.py      one training step told in full, with real numbers        python train.py --explain
    awareness.py    how well predictions fit what happened                   python -m lab.awareness RUN
    compare.py      accuracy and its cost, variants over seeds               python -m lab.compare RUNS
    report.py       tables, charts and transcripts on one HTML page          python -m lab.report RUNS
    spend.py        at inference: predict first, then decide what to solve   python -m lab.spend EVALUATION
    bench.py        speed beside generate, TRL and math-verify               python -m lab.bench

report.py and the calibration curves need more packages: pip install -r requirements-lab.txt
"""

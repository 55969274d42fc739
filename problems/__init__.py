"""Problems: where they come from, and how an answer to one is judged.

Enter this room to train or evaluate on other problems, or to find out why an answer counts as right or wrong.

    source.py       Problem, training streams and held-out sets; load_problems(name) finds whatever has that name
    arithmetic.py, words.py, logic.py    built-in generators. To add one, write such a file and name it in source.py
    files.py        problems in JSON Lines, JSON and Parquet files and on the Hugging Face hub
    benchmarks.py   the evaluation sets of the paper
    kinds.py        comparing answers by their kind: mathematics, the letter of a choice, a truth value
    notions.py      finding a notion in a text, as a whole word in any inflection
    verify.py       the verifier: are two answers mathematically the same?
    latex.py        its grammar, which turns an answer into a tree
    worker.py       its last resort, sympy in a process of its own
"""

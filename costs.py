"""What training costs, in units that do not depend on the machine: rollouts, tokens, floating-point operations.

    drawing    2 N operations a token: each prompt once for its group, each generated token once
    training   6 N a token, each prompt once for its responses: forwards 2 N, backwards twice that

N is the number of parameters. This is the usual estimate; it leaves out the part of attention that grows with the
square of the length, and the optimizer. Evaluations, and the probes of --oracle-gate, are not counted.
Run `python costs.py` for an example.
"""

import time
from collections.abc import Sequence

import grpo
from attempts import Attempt, generated_tokens


def flops(parameters: int, tokens_drawn: int, tokens_trained: int, passes: int = 3) -> int:
    """Floating-point operations of drawing and training on so many tokens.

    passes: forward passes that training on a token is worth: 3, and one more for each of a KL reference, old
    log-probs (several minibatches) and gradient checkpointing.
    """
    return 2 * parameters * (tokens_drawn + passes * tokens_trained)


def of_rollouts(attempts: Sequence[Attempt], parameters: int) -> dict[str, int]:
    """What drawing the predictions and solutions cost; tokens_zero_variance: of solutions that taught nothing."""
    solutions = [attempt.solutions for attempt in attempts if attempt.solutions]
    meta = [attempt.meta_rollouts for attempt in attempts if attempt.meta_rollouts]
    useless = [attempt.solutions for attempt in attempts if attempt.solutions and attempt.zero_variance]
    tokens_solution, tokens_meta = sum(map(generated_tokens, solutions)), sum(map(generated_tokens, meta))
    tokens_prompt = sum(len(group[0].prompt_ids) for group in solutions + meta)
    return {
        "rollouts": sum(map(len, solutions + meta)),
        "tokens_solution": tokens_solution,
        "tokens_meta": tokens_meta,
        "tokens_zero_variance": sum(map(generated_tokens, useless)),
        "flops": flops(parameters, tokens_prompt + tokens_solution + tokens_meta, 0),
    }


def of_training(sequences: Sequence[grpo.Sequence], parameters: int, passes: int) -> dict[str, int]:
    """What one pass of training over the sequences cost."""
    prompts = {tuple(s.prompt_ids) for s in sequences}
    tokens = sum(map(len, prompts)) + sum(len(s.response_ids) for s in sequences)
    return {"tokens_trained": tokens, "flops": flops(parameters, 0, tokens, passes)}


def milliseconds_since(started: float) -> int:
    """`started`: an earlier time.monotonic()."""
    return round(1000 * (time.monotonic() - started))


def main() -> None:
    print("A model of 1,000 parameters draws 10 tokens and trains on 4:", f"{flops(1000, 10, 4):,} operations")
    print("2 x 1,000 x (10 + 3 x 4) = 44,000; with a KL reference 2 x 1,000 x (10 + 4 x 4) =", flops(1000, 10, 4, 4))


if __name__ == "__main__":
    main()

"""Training: the loop of MASA (arXiv 2510.03259), from problems to an updated policy.

    predict -> gate -> solve (with limits) -> verify -> align -> advantages -> update -> clone the experts

`python train.py` trains the embedded policy with MASA-efficient in minutes; `--algo grpo` is the same loop with no
predictions, `--algo masa` with predictions but no gate, cutoff or experts. Read `Trainer.step` beside the paper.

What a run leaves behind is in `journal.py` and `checkpoint.py`, its options are in `options.py`, and what several
processes share (`torchrun --nproc-per-node N train.py`) is in `parallel.py`. Left out: sampling ahead of updates.
"""

import dataclasses
import random
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

import costs
import eval as evaluation
import grpo
import masa
from attempts import Attempt, Sampling, align, experts, predict, solve
from engine import checkpoint, memory, parallel
from engine.journal import RunError, RunFolder, checkpoints, live, read_rows, step_figures, summary, transcript
from engine.logprobs import check_head
from lab import explain
from models import policy as policies
from options import OptionError, Options, build_parser, resolve_options
from problems import tasks, verify
from variants import selection

MAX_SKIPPED_IN_A_ROW = 1000  # so many prompts too long one after the other: the limit is wrong, not the data
MAX_FILL_ROUNDS = 4  # --fill fresh gives up after so many rounds: a gate may refuse everything
WINDOW = 128  # gate and cutoff are judged on the last so many explored problems, trust in the gate on as many seen
# What may go wrong by no fault of the code: the message says all, a traceback would hide it.
EXPECTED = OptionError, RunError, memory.OutOfMemory, parallel.LaunchError, policies.PolicyError, tasks.ProblemError
MAX_BAD_STEPS = 5  # so many steps in a row with a gradient that is not finite: it will not get better
# Cumulative figures, as metrics.jsonl has them.
COUNTERS = """tokens_solution tokens_meta tokens_zero_variance tokens_trained rollouts flops problems_seen
prompts_too_long unparsed_predictions experts_cloned skipped_updates oom_retries verifier_timeouts""".split()


class Trainer:
    """A policy, its optimizers, and all the state that a checkpoint must hold."""

    def __init__(
        self, options: Options, policy: policies.Policy, source: tasks.Source, reference: policies.Policy | None = None
    ) -> None:
        """`reference`: frozen, for the KL term.  Raises OptionError if no held-out prompt is short enough."""
        o, self.options, self.policy, self.source = options, options, policy, source
        self.how = Sampling(o.max_new_tokens, o.max_meta_tokens, o.temperature, o.top_p, o.max_cache_tokens)
        shared = {f.name: getattr(o, f.name) for f in dataclasses.fields(grpo.UpdateSettings) if hasattr(o, f.name)}
        lengths = (("solution", o.max_new_tokens), ("meta", o.max_meta_tokens))
        self.update_settings = grpo.UpdateSettings(**shared, max_lengths=lengths)
        self.reference = reference.model.requires_grad_(False) if reference else None
        parameters = list(policy.model.parameters())
        self.optimizer = torch.optim.AdamW(parameters, lr=o.lr, weight_decay=o.weight_decay)
        # Moments of its own: supervised gradients are far larger than those of GRPO and would drown them.
        self.expert_optimizer = torch.optim.AdamW(parameters, lr=o.expert_lr, weight_decay=0.0)
        held_out = source.heldout(o.eval_problems)
        self.held_out = [problem for problem in held_out if self.fits(problem)]
        if not self.held_out:
            raise OptionError(
                f"--max-prompt-tokens {o.max_prompt_tokens}: all {len(held_out)} held-out problems are longer"
            )
        self.drawn = 0  # position in the stream of problems
        self.counters: Counter[str] = Counter()  # cumulative over the run
        self.experts: list[tuple[str, str]] = []  # (problem, expert answer), until a batch is full
        # Of each explored problem: would be gated, zero variance, solutions beyond its limit, right ones among these
        self.explored: deque[tuple[bool, bool, int, int]] = deque(maxlen=WINDOW)
        self.recent: deque[list[tuple]] = deque(maxlen=max(1, WINDOW // o.problems))  # the same, of each recent step
        self.timeouts_seen = verify.timeouts()  # the verifier counts from the start of the process
        self.announce: Callable[[str], None] = lambda phase: None  # tells whoever waits what is going on

    def step(self, step: int) -> tuple[dict, list[Attempt]]:
        """One step of training: returns its metrics and its attempts."""
        # 1. predict: how often right, how long, with which notions?  2. gate: skip what would teach nothing
        self.announce("predicting")
        attempts = self.predict_and_gate(step)
        solved = [attempt for attempt in attempts if not attempt.gated]
        # 3. solve, each problem within its limit, and 4. verify
        self.announce("solving")
        solve(self.policy, solved, self.options.samples, self.how, self.generator(step, "solve"))
        taught = selection.draw_on(self, attempts, solved, step) if self.options.dynamic_sampling else solved
        # 5. align: how well did the predictions fit?
        align(solved)
        # 6. advantages, within each group of solutions and each group of predictions
        sequences = self.sequences(taught)
        # 7. update
        self.announce("updating")
        skipped = self.counters["skipped_updates"]
        update = self.update(sequences, step)
        self.count_trained(sequences if self.reference else [s for s in sequences if s.advantage])
        # 8. clone the experts
        cloning = self.options.experts and step < self.options.expert_steps
        expert_loss = self.clone_experts(solved) if cloning else None
        bad = self.counters["skipped_updates"] > skipped
        self.counters["bad_steps_in_a_row"] = self.counters["bad_steps_in_a_row"] + 1 if bad else 0
        return self.metrics(attempts, solved) | update | {"expert_loss": expert_loss}, attempts

    def before_training(self) -> tuple[dict, list[Attempt]]:
        """What `step` returns, for step 0: nothing is trained yet."""
        return self.metrics([], []) | self.update([], 0) | {"expert_loss": None}, []

    def acts(self, step: int) -> bool:
        """Are predictions acted on? Not before --efficient-from, nor while the gate would skip much of what teaches."""
        lost = [gated for judged in self.recent for gated, zero_variance, *_ in judged if not zero_variance]
        trusted = sum(lost) <= self.options.gate_loss * len(lost)
        return step >= self.options.efficient_from and (trusted or not self.options.gate)

    def predict_and_gate(self, step: int, draw: int = 0) -> list[Attempt]:
        """A batch of problems with their predictions; fresh ones take the place of gated ones if so wished."""
        o, attempts, want = self.options, [], self.options.problems
        efficient = self.acts(step)  # else predictions are trained, but not acted on
        choosing = o.select == "informative" and (efficient or o.oracle_gate > 0)
        ahead = o.candidates if choosing else 1  # problems drawn for each that is wanted
        refill = o.fill == "fresh" and ((efficient and o.gate) or o.oracle_gate)
        for round_ in range(MAX_FILL_ROUNDS if refill else 1):
            fresh = self.next_attempts(want * ahead, step, explore=o.explore / ahead if efficient else 1.0)
            if o.predictions:
                stream = self.generator(step, f"predict {draw * MAX_FILL_ROUNDS + round_}")
                predict(self.policy, fresh, o.predictions, self.how, stream)
            if efficient:
                for attempt in fresh:
                    self.decide(attempt)
            if o.oracle_gate:
                selection.ask_oracle(self, fresh, step, draw * MAX_FILL_ROUNDS + round_, want)
            elif choosing:
                selection.choose(fresh, want)
            attempts += fresh
            want -= sum(not attempt.gated for attempt in fresh)
            if want <= 0:
                break
        if efficient and o.share_samples:
            selection.share(attempts, o.samples)
        return attempts

    def decide(self, attempt: Attempt) -> None:
        """Gate, cutoff and hint of one problem, from its predictions (paper section 3.3)."""
        if not attempt.exploring:
            attempt.gated = self.options.gate and self.predicted_useless(attempt)
            attempt.limit = self.predicted_limit(attempt) if self.options.cutoff else None
        if self.options.hints:
            hint = masa.hint_notions(attempt.predictions)
            attempt.hint = hint if self.fits(attempt.problem, hint) else ()

    def predicted_useless(self, attempt: Attempt) -> bool:
        thresholds = self.options.gate_std, self.options.gate_margin, self.options.gate_easy
        return masa.should_skip(attempt.predictions, *thresholds)

    def predicted_limit(self, attempt: Attempt) -> int:
        return masa.length_limit(attempt.predictions, self.options.cutoff_multiplier, self.options.max_new_tokens)

    def generator(self, step: int, purpose: str) -> torch.Generator:
        """A random stream for each step, purpose and rank: a resumed run needs no saved state to go on exactly."""
        seed = random.Random(f"{self.options.seed}/{step}/{purpose}").getrandbits(63)
        return torch.Generator().manual_seed(seed + parallel.rank())

    def next_attempts(self, count: int, step: int, explore: float) -> list[Attempt]:
        """The next problems whose prompt is short enough, each exploring with probability `explore`."""
        rng = random.Random(f"{self.options.seed}/{step}/{self.drawn}/explore")
        attempts: list[Attempt] = []
        skipped = 0
        while len(attempts) < count:
            (problem,) = self.source.train(self.options.seed, self.drawn, 1)
            self.drawn += 1
            if self.fits(problem):
                attempts.append(Attempt(problem, exploring=rng.random() < explore))
                skipped = 0
                continue
            self.counters["prompts_too_long"] += 1
            skipped += 1
            if skipped == MAX_SKIPPED_IN_A_ROW:
                raise OptionError(
                    f"--max-prompt-tokens {self.options.max_prompt_tokens}: the last {skipped} problems were longer"
                )
        return attempts

    def fits(self, problem: tasks.Problem, hint: tuple[str, ...] = ()) -> bool:
        """Are the prompts of the problem short enough, that of a prediction (the longer one) too if any are made?"""
        messages = [masa.solution_prompt(problem.text, hint)]
        if self.options.predictions:
            messages.append(masa.meta_prompt(problem.text, self.options.max_new_tokens))
        return all(len(self.policy.encode(message)) <= self.options.max_prompt_tokens for message in messages)

    def sequences(self, solved: list[Attempt]) -> list[grpo.Sequence]:
        """All rollouts of the batch with their advantages; solution and meta groups apart."""
        components = self.options.reward_components
        groups = [("solution", a.solutions, [float(right) for right in a.correct]) for a in solved]
        groups += [("meta", a.meta_rollouts, [rewards.mean(components) for rewards in a.alignments]) for a in solved]
        sequences = []
        for kind, rollouts, rewards in groups:
            advantages = grpo.group_advantages(torch.tensor([rewards]), self.options.normalize_std)[0].tolist()
            for r, advantage in zip(rollouts, advantages, strict=True):
                sequences.append(grpo.Sequence(r.prompt_ids, r.response_ids, advantage, kind, r.logprobs))
        return sequences

    def update(self, sequences: list[grpo.Sequence], step: int) -> dict:
        """One GRPO update; sets the learning rates of this step, that of imitation too. Returns its figures."""
        o = self.options
        for group in self.optimizer.param_groups:
            group["lr"] = o.lr * min(1.0, step / max(1, o.warmup_steps))
        # Adam's steps do not shrink with the gradient: once predictions are good, imitation would only shake weights.
        for group in self.expert_optimizer.param_groups:
            group["lr"] = o.expert_lr * max(0.0, 1 - step / o.expert_steps)
        model, settings = self.policy.model, self.update_settings
        with self.policy.autocast():
            figures = grpo.update(model, self.optimizer, sequences, settings, reference=self.reference, seed=step)
        if figures["oom_retries"]:  # else the next update would run out of memory again
            smaller = max(1, settings.token_budget // 2)
            self.update_settings = dataclasses.replace(settings, token_budget=smaller)
        for name in ("skipped_updates", "oom_retries"):
            self.counters[name] += figures.pop(name)
        return figures

    def clone_experts(self, solved: list[Attempt]) -> float | None:
        """Collect expert predictions and, once a batch is full, imitate it; returns the loss of the last step."""
        self.experts += experts(solved, self.options.expert_failures, self.options.expert_notion)
        loss = None
        while len(self.experts) >= self.options.expert_batch:
            batch, self.experts = self.experts[: self.options.expert_batch], self.experts[self.options.expert_batch :]
            sequences = [
                grpo.Sequence(
                    self.policy.encode(masa.meta_prompt(problem, self.options.max_new_tokens)),
                    self.policy.encode_response(answer),
                )
                for problem, answer in batch
            ]
            model, settings = self.policy.model, self.update_settings
            with self.policy.autocast():
                loss, stepped, retries = grpo.clone(model, self.expert_optimizer, sequences, settings)
            self.count_trained(sequences)
            self.counters["skipped_updates"] += not stepped
            self.counters["oom_retries"] += retries
            self.counters["experts_cloned"] += len(batch)
        return loss

    def count_trained(self, sequences: list[grpo.Sequence]) -> None:
        """Count what an update on these sequences, or an imitation of them, costs."""
        o = self.options
        passes = 3 + (self.reference is not None) + (o.minibatches > 1) + o.gradient_checkpointing
        self.counters.update(costs.of_training(sequences, self.policy.model.num_parameters(), passes))

    def metrics(self, attempts: list[Attempt], solved: list[Attempt]) -> dict:
        """The figures of one step, after adding it to the counters."""
        predictions = [prediction for attempt in attempts for prediction in attempt.predictions]
        self.counters.update(costs.of_rollouts(attempts, self.policy.model.num_parameters()))
        self.counters["problems_seen"] += len(attempts)
        self.counters["unparsed_predictions"] += sum(prediction is None for prediction in predictions)
        self.recent.append([self.judgement(a) for a in solved if a.exploring and a.predictions])
        self.explored.extend(self.recent[-1])
        return step_figures(attempts, self.explored)

    def judgement(self, attempt: Attempt) -> tuple[bool, bool, int, int]:
        """What gate and cutoff would have done to an explored problem: an entry of `explored`."""
        limit = self.predicted_limit(attempt)
        verdicts = zip(attempt.solutions, attempt.correct, strict=True)
        beyond = [right for rollout, right in verdicts if len(rollout.response_ids) > limit]
        return self.predicted_useless(attempt), attempt.zero_variance, len(beyond), sum(beyond)

    def evaluate(self) -> tuple[dict, list[Attempt]]:
        """Figures and attempts on the fixed held-out problems: neither gated nor cut, the same random numbers."""
        attempts = evaluation.attempt_all(
            self.policy,
            self.held_out,
            samples=self.options.eval_samples,
            predictions=self.options.eval_predictions,
            how=self.how,
            progress=lambda parts: tqdm(parts, "evaluating", unit="batch", leave=False, disable=parallel.rank() > 0),
        )
        result = evaluation.summarize(attempts)
        return {f"eval_{name}": result[name] for name in evaluation.IN_METRICS}, attempts

    def check_health(self, step: int) -> None:
        """Raise RunError if training cannot recover: before a checkpoint is written over a good one."""
        parts = [parallel.part(parameter) for parameter in self.policy.model.parameters()]
        finite = not parallel.largest(not all(bool(part.isfinite().all()) for part in parts))
        if finite and self.counters["bad_steps_in_a_row"] < MAX_BAD_STEPS:
            return
        what = f"the gradient was not finite {MAX_BAD_STEPS} times in a row" if finite else "a weight is not finite"
        raise RunError(
            f"step {step}: {what}. The last checkpoint is a good one: resume it with a lower --lr (or --expert-lr), "
            "a lower --max-grad-norm or a longer --warmup-steps; a reward or a log-prob may also be at fault."
        )

    def count_timeouts(self) -> None:
        """Add what the verifier has given up on since the last call."""
        before, self.timeouts_seen = self.timeouts_seen, verify.timeouts()
        self.counters["verifier_timeouts"] += int(parallel.total({"new": self.timeouts_seen - before})["new"])


def load_policy(name: str, options: Options, samples: bool = True) -> policies.Policy:
    """A policy on its device, or split over those of all ranks; `samples`: it will.  Raises PolicyError."""
    if options.shard and parallel.world() == 1:
        raise OptionError("--shard splits a model over several processes: torchrun --nproc-per-node N train.py --shard")
    device = policies.pick_device(options.device)
    load_on = "cpu" if options.shard else device
    policy = policies.load(name, load_on, options.gradient_checkpointing, options.trust_remote_code, options.dtype)
    try:
        check_head(policy.model)
    except ValueError as error:
        raise policies.PolicyError(f"model {name!r}: {error}") from error
    if options.shard:
        policy.shard(device, samples)
    return policy


def make_trainer(options: Options, model: str) -> Trainer:
    """A trainer of `model`: that of the options, or the checkpoint that a resumed run goes on from."""
    source = tasks.load_problems(options.data, hopeless=options.hopeless, levels=options.chosen_levels)
    source.print_skipped()
    policy = load_policy(model, options)
    # Loaded by its name, not copied: a resumed run starts with a policy that has moved away from the reference.
    reference = load_policy(options.model, options, samples=False) if options.kl_coef > 0 else None
    return Trainer(options, policy, source, reference)


def train(options: Options, run: Path) -> list[dict]:
    """Train as the options say, into the folder `run`; returns all rows of its metrics.jsonl."""
    found = None
    if options.resume:  # one looks for all: they must agree, and none may tidy up while another looks
        found = parallel.from_first(lambda: checkpoint.last_whole(run, read_rows(run / "metrics.jsonl")))
    if options.resume and not found:
        print(f"{run} holds no checkpoint: nothing to resume, starting at step 0")
    trainer = make_trainer(options, str(found or options.model))
    last = checkpoint.restore(trainer, found) if found else -1
    memory.announce(trainer.policy, options)
    first = parallel.rank() == 0  # it logs and saves
    folder = RunFolder(run, options, last, writes=first)
    if first:
        checkpoint.tidy(run, last, options.keep)

    not_evaluated = {f"eval_{name}": None for name in evaluation.IN_METRICS}

    def log(step: int, figures: dict, attempts: list[Attempt]) -> None:
        evaluated = not_evaluated
        if step % options.eval_every == 0 or step == options.steps:
            evaluated, held_out = trainer.evaluate()
            folder.log_evaluation(step, trainer.counters["training_ms"] / 1000, held_out)
        trainer.count_timeouts()
        counters = {name: trainer.counters[name] for name in COUNTERS}
        shown = [transcript(step, attempt) for attempt in attempts[: options.transcripts]]
        folder.log(step, figures | counters | evaluated, shown)

    bar = tqdm(total=options.steps, initial=max(last, 0), unit="step", disable=not first)
    trainer.announce = lambda phase: bar.set_description_str(f"{phase:<10}")
    with checkpoint.StopRequest() as stop:
        for step in range(last + 1, options.steps + 1):
            started = time.monotonic()
            figures, attempts = trainer.step(step) if step else trainer.before_training()
            trainer.counters["training_ms"] += costs.milliseconds_since(started)
            log(step, figures, attempts)
            bar.update(min(step, 1))
            bar.set_postfix_str(live(folder.rows))
            trainer.check_health(step)
            stopping = parallel.largest(stop.number)
            if (step and step % options.save_every == 0) or step == options.steps or stopping:
                checkpoint.save(trainer, run, folder.rows[-1])
            if stopping and step < options.steps:
                name = signal.Signals(stopping).name
                raise checkpoint.Stopped(stopping, f"ended by {name} after step {step} of {options.steps}")
    bar.close()
    return folder.rows


def main() -> None:
    try:
        parser = build_parser()
        parser.add_argument("--explain", action="store_true", help="tell one step in full, with real numbers; no run")
        given = vars(parser.parse_args())
        parallel.start(policies.pick_device(given.get("device", "auto")))
        if given.pop("explain", False):
            return explain.tell(given, make_trainer)
        options, run = resolve_options(given)
        parallel.wait()  # all have looked for the folder before one of them makes it
        print(f"{options.algo} on {options.model}, problems: {options.data}, into {run}")
        rows = train(options, run)
        parallel.end()
    except checkpoint.Stopped as stop:
        print(f"\n{stop}; to go on: python train.py --resume --out {run}")
        sys.exit(128 + stop.number)
    except KeyboardInterrupt:
        print("\ntrain.py: ended at once; --resume goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except EXPECTED as error:
        sys.exit(f"train.py: {error}")
    print(f"\n{summary(rows)}\n\ntrained policy: {checkpoints(run)[-1]}")


if __name__ == "__main__":
    main()

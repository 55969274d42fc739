"""Training: the loop of MASA (arXiv 2510.03259), from problems to an updated policy.

    predict -> gate -> solve (within limits) -> verify -> align -> advantages -> update -> imitate experts

`python train.py` trains the embedded policy with MASA-efficient in minutes. `--algo grpo` is the same loop without
predictions, `--algo masa` the one that trains predictions but never acts on them. Read `Trainer.step` beside the paper.

Each option is declared in the file that reads it, with its help and, in braces, its limits; "real" is its default for
any model but the embedded policy. What a run leaves on disk is in `engine/run_folder.py`. A variant (`--variant`) is a
small subclass of `Trainer` in `variants/`. Left out: sampling ahead of updates.
"""

import argparse
import dataclasses
import importlib
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from tqdm import tqdm

import eval as evaluation
import grpo
import masa
from engine import memory, parallel, run_folder, terminal
from engine.command_line import USAGE, OptionError, Parts, add_flags, make
from engine.figures import COUNTERS, Judgement, cost_of_rollouts, cost_of_training, judge, step_figures, transcript
from engine.load import load_policy
from engine.run_folder import RunFolder, Stopped, StopRequest
from eval import EvalOptions
from grpo import Sample, UpdateOptions
from masa import GateOptions, ImitationOptions
from models.loading import ModelOptions, pick_device
from models.policy import Policy
from models.tiny import is_embedded
from problems.source import DataOptions, Problem, Source, load_problems
from rewards import RewardOptions
from rollout import Attempt, SamplingOptions, align, expert_answers, predict, solve

# What --algo sets. GRPO is MASA without predictions. MASA-efficient adds gate, cutoff and experts; it is what the
# defaults say, so nothing is set. MASA-paper is version 2 of the paper; docs/paper.md has version 1.
ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": {"predictions": 0, "gate": "off", "cutoff": 0.0, "experts": False},
    "masa": {"gate": "off", "cutoff": 0.0, "experts": False},
    "masa-efficient": {},
    # Beyond the paper: pass rates are read instead of drawn, so predictions cost no tokens and can gate from early on.
    "masa-read": {"predictions": 0, "experts": False, "cutoff": 0.0, "variant": "read"}
    | {"gate": "both", "gate_margin": 0.05, "efficient_from": 10, "explore": 0.05},
    "masa-paper": {"predictions": 8, "gate": "both", "gate_margin": 0.0, "gate_loss": 1.0, "explore": 0.0}
    | {"efficient_from": 60, "hints": "draws", "aggregation": "joint-mean", "meta_weight": 1.0}
    | {"experts": False, "expert_failures": False, "expert_optimizer": "shared", "eval_predictions": 8},
}
# And for any model but the embedded policy, besides. Skipping by what is read did not pay there (docs/real-model.md).
REAL: dict[str, dict[str, Any]] = {"masa-read": {"gate": "off"}, "masa-paper": {"meta_reasoning": True}}
Algorithm = Literal["grpo", "masa", "masa-efficient", "masa-paper", "masa-read"]
VARIANTS = ("dapo", "history", "oracle-gate", "read", "refill")
WINDOW = 512  # the gate is judged by the explored ones among this many last problems
EXPERT_BATCH = 16  # expert predictions in one step of imitation


@dataclass
class RunOptions:
    """The run."""

    algo: Annotated[Algorithm, "preset of the options below"] = "masa-efficient"
    variant: Annotated[str, f"of {', '.join(VARIANTS)} (see variants/); several with commas between"] = ""
    problems: Annotated[int, "problems in a batch (P)", {"least": 1, "real": 16}] = 32
    steps: Annotated[int, "steps of training", {"least": 1, "real": 200}] = 240
    seed: Annotated[int, "seed of problems and draws; the same seed gives the same run"] = 0
    out: Annotated[str, "output folder; empty for a new one under runs/"] = ""
    resume: Annotated[bool, "continue from the last checkpoint in --out, with the options found there"] = False
    save_every: Annotated[int, "steps between checkpoints", {"least": 1}] = 40
    keep: Annotated[int, "checkpoints to keep; if the last is damaged, the one before is used", {"least": 1}] = 2
    transcripts: Annotated[int, "problems written to rollouts.jsonl in each step", {"least": 0}] = 2


@dataclass
class Options(Parts):
    """All options, in the parts that read them."""

    run: RunOptions
    data: DataOptions
    model: ModelOptions
    sampling: SamplingOptions
    rewards: RewardOptions
    update: UpdateOptions
    gate: GateOptions
    imitation: ImitationOptions
    evaluation: EvalOptions

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Options":
        """Make options from those that are given, over the presets of algorithm and model.  Raises OptionError."""
        algo, embedded = given.get("algo", RunOptions.algo), is_embedded(given.get("model", ModelOptions.model))
        o = cls.from_values(ALGORITHMS.get(algo, {}) | ({} if embedded else REAL.get(algo, {})) | dict(given))
        s, variants = o.sampling, o.run.variant.split(",")
        if s.meta_reasoning and "max_meta_tokens" not in given:
            s.max_meta_tokens = s.max_new_tokens
        uses = {"gate": o.gate.gate != "off" and "read" not in variants, "cutoff": o.gate.cutoff > 0}
        uses |= {"hints": o.gate.hints != "off", "experts": o.imitation.experts}
        lacking = [f"--{name}" for name, is_on in uses.items() if is_on and not s.predictions]
        unknown = [name for name in variants if name not in ("", *VARIANTS)]
        for fault, message in (
            (s.meta_reasoning and embedded, "--meta-reasoning: the embedded policy cannot do it; name another --model"),
            (s.samples < 2, "--samples: found 1, expected at least 2: solutions are compared with each other"),
            (s.temperature == 0, "--temperature: found 0, expected above 0: greedy solutions are all the same"),
            (unknown, f"--variant: found {', '.join(unknown)}, expected some of {', '.join(VARIANTS)}"),
            (lacking, f"--predictions 0 leaves {', '.join(lacking)} nothing to go by; see --algo grpo"),
        ):
            if fault:
                raise OptionError(message)
        return o


class Trainer:
    """A policy, its optimizers, and all the state that a checkpoint must hold."""

    def __init__(self, options: Options, policy: Policy, source: Source, reference: Policy | None = None) -> None:
        """Start with nothing drawn.  reference: frozen policy of the KL penalty.  Raises OptionError, PolicyError."""
        self.options, self.policy, self.source = options, policy, source
        longest = max(options.sampling.max_new_tokens, options.sampling.max_meta_tokens)
        policy.check_room(options.sampling.max_prompt_tokens, longest)
        self.reference = reference.model.requires_grad_(False) if reference else None
        # Supervised gradients are far larger than those of GRPO and would drown them in moments that they share.
        parameters = list(policy.model.parameters())
        self.optimizer = torch.optim.AdamW(parameters, weight_decay=grpo.WEIGHT_DECAY)
        shared = options.imitation.expert_optimizer == "shared"
        self.expert_optimizer = self.optimizer if shared else torch.optim.AdamW(parameters, weight_decay=0.0)
        self.drawn, self.counters = 0, Counter[str]()  # position in the stream of problems; cumulative figures
        held_out = source.heldout(options.evaluation.eval_problems)
        self.held_out = [problem for problem in held_out if self.fits(problem)]
        self.counters["prompts_too_long"] = len(held_out) - len(self.held_out)
        if not self.held_out:
            raise OptionError("--max-prompt-tokens: the prompts of all held-out problems are longer")
        self.experts: list[tuple[str, str]] = []  # (problem, expert prediction), until there is a batch of them
        self.lessons: list[tuple[torch.Tensor, int]] = []  # (hidden state, count that came true), see variants/read.py
        self.explored: deque[Judgement] = deque(maxlen=WINDOW)  # what gate and cutoff would have done
        self.announce: Callable[[str], None] = lambda phase: None  # tells whoever is waiting what is being done

    def step(self, step: int) -> tuple[dict[str, Any], list[Attempt]]:
        """Make one step of training; return its figures and its attempts. In step 0 nothing is drawn."""
        o, acts, lost_before = self.options, self.acts(step), self.counters["skipped_updates"]
        attempts, wanted, draw = list[Attempt](), o.run.problems if step else 0, 0
        while wanted:  # once, unless a variant wants more problems
            fresh = self.next_attempts(wanted, step, explore=o.gate.explore if acts else 1.0)
            # 1. Predict: how often right, how long, with which notions?
            self.announce("predicting")
            self.predict(fresh, step, draw)
            # 2. Gate: skip what would teach nothing, and limit how long a solution may get.
            if acts:
                self.gate(fresh)
            self.choose(fresh, step, draw)
            # 3. Solve each problem within its limit, and 4. verify the answers.
            self.announce("solving")
            solve(self.policy, [a for a in fresh if not a.skipped], o.sampling, self.stream(step, f"solve {draw}"))
            attempts += fresh
            wanted, draw = self.wanted(attempts, draw), draw + 1
        solved = [attempt for attempt in attempts if attempt.solutions]
        # 5. Align: how well did the predictions fit what happened?
        align(solved, o.rewards.difficulty_base)
        # 6. Advantages, within each group of solutions and each group of predictions.
        samples = self.samples(solved)
        # 7. Update the policy, and 8. imitate the experts.
        self.announce("updating")
        figures = self.update(samples, step) | self.imitate(solved, step)
        lost = self.counters["skipped_updates"] > lost_before
        self.counters["bad_steps_in_a_row"] = self.counters["bad_steps_in_a_row"] + 1 if lost else 0
        return self.metrics(attempts, step) | figures, attempts

    # ---- for variants/ to override, as any method: which problems are solved, and when there are enough

    def choose(self, attempts: Sequence[Attempt], step: int, draw: int) -> None:
        """Skip further problems, or fewer. Nothing to do here."""

    def wanted(self, attempts: Sequence[Attempt], draw: int) -> int:
        """Return how many problems to draw in addition to these attempts: none."""
        return 0

    # ---- 1. and 2.: problems, and what is decided about them

    def acts(self, step: int) -> bool:
        """Decide whether to act on predictions: from --efficient-from on, while the gate is trusted.

        Of the last WINDOW problems, take those that explored and taught something. The gate is trusted if it would have
        skipped at most --gate-loss of these.
        """
        start = step - max(1, WINDOW // self.options.run.problems)
        would_skip = [skip for when, skip, zero_variance, *_ in self.explored if when >= start and not zero_variance]
        trusted = sum(would_skip) <= self.options.gate.gate_loss * len(would_skip)
        return step >= self.options.gate.efficient_from and (trusted or self.options.gate.gate == "off")

    def predict(self, attempts: Sequence[Attempt], step: int, draw: int) -> None:
        """Draw the predictions."""
        if self.options.sampling.predictions:
            predict(self.policy, attempts, self.options.sampling, self.stream(step, f"predict {draw}"))

    def gate(self, attempts: Sequence[Attempt]) -> None:
        """Set what is skipped and the limits (section 3.3), unless a problem explores, and the hints."""
        o, rng = self.options, random.Random(f"{self.options.run.seed}/{self.drawn}/hints")
        for attempt in attempts:
            if not attempt.explores:
                attempt.skipped = o.gate.gate != "off" and self.would_skip(attempt)
                attempt.limit = self.limit(attempt) if o.gate.cutoff else None
            if o.gate.hints != "off":
                hints = [masa.hint_notions(attempt.predictions)]
                if o.gate.hints == "draws":
                    hints = masa.draw_hints(attempt.predictions, o.sampling.samples, rng)
                attempt.hints = [hint if self.fits(attempt.problem, hint) else () for hint in hints]

    def would_skip(self, attempt: Attempt) -> bool:
        margin, easy = self.options.gate.gate_margin, self.options.gate.gate == "both"
        return masa.should_skip(attempt.predictions, margin=margin, easy=easy)

    def limit(self, attempt: Attempt) -> int:
        multiplier = self.options.gate.cutoff or GateOptions.cutoff  # --cutoff 0: the default, for figures only
        return masa.length_limit(attempt.predictions, multiplier, self.options.sampling.max_new_tokens)

    def stream(self, step: int, purpose: str) -> torch.Generator:
        """Return a random stream for this step, purpose and process: a resumed run needs no saved random state."""
        seed = random.Random(f"{self.options.run.seed}/{step}/{purpose}").getrandbits(63)
        return torch.Generator().manual_seed(seed + self.policy.rank)

    def next_attempts(self, count: int, step: int, explore: float) -> list[Attempt]:
        """Take the next problems whose prompt is short enough; each explores with probability `explore`."""
        rng = random.Random(f"{self.options.run.seed}/{step}/{self.drawn}/explore")
        problems, end = self.source.take(self.options.run.seed, self.drawn, count, self.fits)
        self.counters["prompts_too_long"] += end - self.drawn - count
        self.drawn = end
        return [Attempt(problem, explores=rng.random() < explore) for problem in problems]

    def fits(self, problem: Problem, hint: tuple[str, ...] = ()) -> bool:
        """Check that the prompts of a problem are short enough: the solution's, and the prediction's if any is made."""
        sampling, messages = self.options.sampling, [masa.solution_prompt(problem.text, hint)]
        messages += [sampling.ask(problem.text)] if sampling.predictions else []
        return max(len(self.policy.encode(m)) for m in messages) <= sampling.max_prompt_tokens

    # ---- 6. to 8.: what is learned

    def samples(self, solved: Sequence[Attempt]) -> list[Sample]:
        """Return all rollouts with their advantages; solutions and predictions ("meta") of a problem are two groups."""
        components = self.options.rewards.components
        groups = [("solution", a.solutions, [float(right) for right in a.correct]) for a in solved]
        groups += [("meta", a.meta_rollouts, [each.mean(components) for each in a.alignments]) for a in solved]
        samples = []
        for number, (kind, rollouts, rewards) in enumerate(groups):
            advantages = grpo.group_advantages(torch.tensor([rewards]), self.options.update.normalize_std)
            for r, advantage in zip(rollouts, advantages[0].tolist(), strict=True):
                samples.append(Sample(r.prompt_ids, r.response_ids, advantage, kind, number, r.logprobs))
        return samples

    def update(self, samples: Sequence[Sample], step: int) -> dict[str, Any]:
        """Make one GRPO update at the learning rate of this step; return its figures."""
        o = self.options
        for group in self.optimizer.param_groups:
            group["lr"] = o.update.lr * min(1.0, step / max(1, o.update.warmup_steps))
            group["lr"] *= max(o.update.lr_end, 1 - step / o.run.steps)
        lengths = {"solution": o.sampling.max_new_tokens, "meta": o.sampling.max_meta_tokens}
        settings: dict[str, Any] = {"temperature": o.sampling.temperature, "max_lengths": lengths, "seed": step}
        settings |= {"reference": self.reference, "over_batches": self.policy.over_batches}
        with self.policy.autocast():
            figures = grpo.update(self.policy.model, self.optimizer, samples, o.update, **settings)
        more_passes = (self.reference is not None) + (o.update.minibatches > 1)  # for reference and old log-probs
        self.count([sample for sample in samples if sample.advantage or self.reference], figures, more_passes)
        return figures

    def imitate(self, solved: Sequence[Attempt], step: int) -> dict[str, Any]:
        """Collect expert predictions and imitate each full batch of them; return the loss of the last one, if any."""
        o, loss = self.options, None
        # Adam's steps do not shrink with the gradient: at a constant rate, imitation would keep disturbing the weights.
        fading = max(0.0, 1 - step / o.run.steps) if o.imitation.expert_optimizer == "own" else 1.0
        lr = o.imitation.expert_lr * fading
        self.experts += expert_answers(solved, o.imitation) if o.imitation.experts and lr else []
        while len(self.experts) >= EXPERT_BATCH:
            batch, self.experts = self.experts[:EXPERT_BATCH], self.experts[EXPERT_BATCH:]
            samples = [self.policy.demonstration(o.sampling.ask(problem), answer) for problem, answer in batch]
            for group in self.expert_optimizer.param_groups:
                group["lr"] = lr
            figures = self.policy.imitate(self.expert_optimizer, samples, o.update)
            self.count(samples, figures)
            self.counters["experts_cloned"] += len(batch)
            loss = figures["expert_loss"]
        return {"expert_loss": loss, "read_loss": None}  # the latter is for variants/read.py to fill in

    # ---- figures

    def count(self, samples: Sequence[Sample], figures: dict[str, Any], more_passes: int = 0) -> None:
        """Count what training on the samples cost and what went wrong: lost updates, and memory that ran out."""
        passes = 3 + self.options.model.gradient_checkpointing + more_passes  # going backward costs as much as two
        self.counters.update(cost_of_training(samples, self.policy.model.num_parameters(), passes))
        self.counters["skipped_updates"] += figures.pop("skipped_updates")
        if retries := figures.pop("oom_retries"):  # stay at half of what was too much
            self.counters["oom_retries"] += retries
            self.options.update.token_budget = max(1, self.options.update.token_budget // 2)

    def metrics(self, attempts: Sequence[Attempt], step: int) -> dict[str, Any]:
        """Count what the step cost, judge gate and cutoff on the explored problems, and return the step's figures."""
        self.counters.update(cost_of_rollouts(attempts, self.policy.model.num_parameters()))
        explored = [a for a in attempts if a.explores and a.solutions and (a.predictions or a.belief)]
        self.explored.extend(judge(a, step, self.would_skip(a), self.limit(a)) for a in explored)
        outdated = self.acts(step) and not self.options.gate.explore  # there is nothing new to judge it by
        return step_figures(attempts, [] if outdated else self.explored)

    def evaluate(self) -> tuple[dict[str, Any], list[Attempt]]:
        """Return figures and attempts on the held-out problems, neither skipped nor cut, always by the same draws."""
        e = self.options.evaluation
        sampling = dataclasses.replace(self.options.sampling, samples=e.eval_samples, predictions=e.eval_predictions)
        attempts = evaluation.attempt_all(self.policy, self.held_out, sampling, label="evaluating")
        result = evaluation.summarize(attempts)
        self.counters["verifier_timeouts"] += result["verifier_timeouts"]
        return {name: result[name.removeprefix("eval_")] for name in evaluation.IN_METRICS}, attempts


def make_trainer(options: Options, model: str = "", kind: type[Trainer] = Trainer) -> Trainer:
    """Make a trainer of the options' model, or of the checkpoint `model` that a resumed run continues from."""
    source = load_problems(options.data.data, levels=options.data.chosen_levels)
    source.print_skipped()
    # The reference is loaded by name, not copied: a resumed run starts with a policy that has moved away from it.
    reference = load_policy(options.model, samples=False) if options.update.kl_coef > 0 else None
    return kind(options, load_policy(options.model, model), source, reference)


def train(options: Options, path: Path, kind: type[Trainer] = Trainer) -> list[dict[str, Any]]:
    """Train as the options say, into the folder `path`; return all rows of its metrics.jsonl."""
    folder = RunFolder(path, options.flat(), options.run.resume, options.run.keep)
    trainer = make_trainer(options, str(folder.checkpoint or ""), kind)
    policy = trainer.policy
    print(terminal.first_lines(policy, trainer.source, trainer.held_out, options.model.model))
    memory.announce(policy, options.flat())
    last = folder.restore(trainer)
    bar = tqdm(total=options.run.steps, initial=max(last, 0), disable=policy.rank > 0, bar_format=terminal.BAR)
    trainer.announce = lambda phase: bar.set_description_str(f"{phase:<10}")
    with StopRequest() as stop:
        for step in range(last + 1, options.run.steps + 1):
            started = time.monotonic()
            figures, attempts = trainer.step(step)
            trainer.counters["training_ms"] += round(1000 * (time.monotonic() - started))
            figures |= dict.fromkeys(evaluation.IN_METRICS)  # None without an evaluation
            if step % options.evaluation.eval_every == 0 or step == options.run.steps:
                evaluated, held_out = trainer.evaluate()
                seconds = trainer.counters["training_ms"] / 1000  # without evaluations
                folder.log_evaluation(step, seconds, [transcript(attempt, step) for attempt in held_out])
                figures |= evaluated
            figures |= {name: trainer.counters[name] for name in COUNTERS}
            folder.log(step, figures, [transcript(attempt, step) for attempt in attempts[: options.run.transcripts]])
            bar.update(1 if step else 0)
            bar.set_postfix_str(terminal.live(folder.rows))
            run_folder.check_health(policy.model, trainer.counters["bad_steps_in_a_row"], step, policy.agree)
            stopping = stop.requested(policy.agree)
            if (step and step % options.run.save_every == 0) or step == options.run.steps or stopping:
                folder.save(trainer, step)
            if stopping and step < options.run.steps:
                raise Stopped(stopping, f"step {step} of {options.run.steps}", path)
    bar.close()
    return folder.rows


def resolve(given: Mapping[str, Any], path: Path) -> Options:
    """Return the options given, over those of the run in `path` if that is resumed.  Raises OptionError."""
    config = run_folder.read_config(path) if given.get("resume") else {}
    if config:
        Options.check({**config, **given}, str(path / "config.json"))
        run_folder.check_changes(given, config, path)
    return Options.of({**config, **given})


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all options; those that are not given stay absent from what it parses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], usage=USAGE)
    add_flags(parser, Options.parts().values(), ALGORITHMS | {f"{name}, real models": o for name, o in REAL.items()})
    return parser


def main() -> None:
    parser = build_parser()
    parser.add_argument("--explain", action="store_true", help="tell one step in full, with real numbers; no run")
    given = vars(parser.parse_args())
    end = terminal.ending("train.py", "; --resume continues from the last checkpoint")
    with end, parallel.processes(pick_device(given.get("device", "auto"))):
        if given.pop("explain"):
            importlib.import_module("lab.explain").tell(given)
            return
        run = make(RunOptions, given)
        name = f"{run.algo}-{Path(given.get('model', ModelOptions.model)).name}-seed{run.seed}"
        with run_folder.hold(run.out, name, run.resume) as path:
            options = resolve(given, path)
            kind = importlib.import_module("variants").load(options.run.variant) if options.run.variant else Trainer
            print(f"{options.run.algo} on {options.model.model}, problems: {options.data.data}, into {path}")
            rows = train(options, path, kind)
            print(f"\n{terminal.summary(rows)}\n\ntrained policy: {path / 'checkpoints' / f'step-{options.run.steps}'}")


if __name__ == "__main__":
    main()

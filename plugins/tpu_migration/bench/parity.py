"""Compare the answers of two servers: `tpu-migration parity`.

The baseline answers greedily with log probabilities, one question at a time and again several at a time: how far
those two are apart is the noise floor. Its answers are then forced on the candidate, never the other way round: only
the candidate, which has no users yet, is asked for `prompt_logprobs`, which have killed live engines. A candidate that
has users by now is held to answers that were kept of the baseline, or asked beside it, in ordinary completions alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp

from tpu_migration.bench import answers, features
from tpu_migration.bench.completions import Greedy, NoAnswerError, RefusedError, Server
from tpu_migration.bench.options import count, header
from tpu_migration.bench.questions import MOST, questions
from tpu_migration.bench.sealed import ResultCorrupt, encode, read_object, seal, unseal
from tpu_migration.domain.gate.parity import (
    Answer,
    FeatureParity,
    Parity,
    PromptParity,
    TaskParity,
    Top,
    divergence,
    likeliest,
)

_TOGETHER = 8  # another batch size, for the noise floor
_LONGEST = 1000  # tokens of prompt and answer: the TPU build compiles prompt_logprobs up to 1,024
_STRIDE = 8  # where nothing can be forced, every so many tokens the candidate is asked to go on
_NOT_FORCED = f"every {_STRIDE}th position was compared, for the candidate takes no prompt_logprobs"
_TIMEOUT_S = 300.0
_KINDS = {"prompt": PromptParity, "task": TaskParity, "feature": FeatureParity}


@dataclass(frozen=True)
class Task:
    """A question with the answer that counts as right: a text that it must hold, or a regular expression."""

    id: str
    prompt: str
    expected: str
    is_pattern: bool = False

    def is_right(self, answer: str) -> bool:
        """Tell whether an answer is right."""
        if self.is_pattern:
            return re.search(self.expected, answer) is not None
        return self.expected.casefold() in answer.casefold()


def read_tasks(text: str) -> list[Task]:
    """Read JSON lines of prompt and expected (or pattern), and an id if you like; ValueError names the line."""
    tasks = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            pattern = "pattern" in data
            expected = re.compile(data["pattern"]).pattern if pattern else data["expected"]
            tasks.append(Task(str(data.get("id", number)), str(data["prompt"]), str(expected), pattern))
        except (ValueError, KeyError, TypeError, re.error) as error:
            raise ValueError(f"task line {number}: {error!r}; wanted is prompt, and expected or pattern") from error
    return tasks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `tpu-migration parity`."""
    baseline = parser.add_mutually_exclusive_group(required=True)
    baseline.add_argument("--url", help="the baseline's address, without /v1")
    baseline.add_argument("--answers", type=Path, metavar="FILE", help="answers that were kept of the baseline")
    parser.add_argument(
        "--candidate-url", required=True, help="the candidate's; it must have no users yet, but for --answers-only"
    )
    parser.add_argument(
        "--answers-only",
        action="store_true",
        help="ordinary completions and nothing else, a request at a time: the candidate has users",
    )
    parser.add_argument("--model", required=True, help="the served model name")
    parser.add_argument("--header", action="append", default=[], type=header, metavar="K=V", help="for the baseline")
    parser.add_argument("--prompts", type=count, default=64, help=f"how many questions, at most {MOST}")
    parser.add_argument("--tokens", type=count, default=256, help="longest answer")
    parser.add_argument("--top", type=count, default=5, help="tokens compared at a position")
    parser.add_argument("--seed", type=int, default=1, help="which questions")
    parser.add_argument(
        "--forced",
        action="store_true",
        help="compare every position by prompt_logprobs; never where the candidate takes images: it would crash",
    )
    parser.add_argument("--tasks", type=Path, metavar="FILE", help="JSON lines of prompt and expected (or pattern)")
    parser.add_argument("--out", required=True, help="result file; - for standard output")


def main(args: argparse.Namespace) -> int:
    """Compare; 0, 1 if a server does not answer, 2 for options that cannot be."""
    if args.prompts > MOST:
        print(f"parity: there are {MOST} questions, not {args.prompts}", file=sys.stderr)
        return 2
    try:
        tasks = read_tasks(args.tasks.read_text(encoding="utf-8")) if args.tasks else []
        known = answers.parse(args.answers.read_text(encoding="utf-8")) if args.answers else ()
    except (OSError, ValueError) as error:
        print(f"parity: {args.tasks or args.answers}: {error}", file=sys.stderr)
        return 2
    try:
        text = render(asyncio.run(_hold_to(args, known) if args.answers else _measure(args, tasks)))
    except NoAnswerError as error:
        print(f"parity: no answer from {error}", file=sys.stderr)
        return 1
    if args.out == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        Path(args.out).write_text(text, encoding="utf-8")
    return 0


async def _measure(args: argparse.Namespace, tasks: Sequence[Task]) -> Parity:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)) as client:
        baseline = Server(client, args.url, args.model, dict(args.header))
        candidate = Server(client, args.candidate_url, args.model, {})
        asked = questions(args.prompts, args.seed)
        forced = args.forced and not args.answers_only
        found = await _compare(baseline, candidate, asked, args.tokens, args.top, forced=forced)
        if args.answers_only:
            return found
        right = [
            TaskParity(
                each.id, each.is_right(await _reply(baseline, each)), each.is_right(await _reply(candidate, each))
            )
            for each in tasks
        ]
        probed = await features.compare(baseline, candidate)
    return replace(found, tasks=tuple(right), features=tuple(probed))


async def _hold_to(args: argparse.Namespace, known: Sequence[Answer]) -> Parity:
    """Compare with answers that were kept: what the candidate says to each prompt, and how it would go on."""
    reduced = [_NOT_FORCED]
    prompts = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)) as client:
        candidate = Server(client, args.candidate_url, args.model, {})
        for index, each in enumerate(known[: args.prompts]):
            theirs = Greedy(each.tokens[: args.tokens], each.tops[: args.tokens], "")
            ours = await candidate.greedy(each.prompt, args.tokens, args.top)
            before = await candidate.tokenize(each.prompt)
            tops = await _seen_by(candidate, before, list(theirs.tokens), args.top, reduced)
            found = compared(f"{index}", theirs, theirs, tops, len(ours.tokens))
            prompts.append(replace(found, noise_kl=each.noise_kl, noise_agree=each.noise_agree))
    return Parity(tuple(prompts), reduced=tuple(reduced))


async def _reply(server: Server, task: Task) -> str:
    return str((await server.chat(task.prompt, temperature=0, max_tokens=512)).get("content") or "")


async def _compare(
    baseline: Server, candidate: Server, asked: Sequence[str], tokens: int, top: int, *, forced: bool
) -> Parity:
    reduced: list[str] = [] if forced else [_NOT_FORCED]
    try:
        alone = [await baseline.greedy(each, tokens, top) for each in asked]
        crowd = asyncio.Semaphore(_TOGETHER)

        async def among_others(prompt: str) -> Greedy:
            async with crowd:
                return await baseline.greedy(prompt, tokens, top)

        again = await asyncio.gather(*(among_others(each) for each in asked))
    except RefusedError as error:
        reduced.append(f"the baseline tells no log probabilities ({error}): only its tokens are compared")
        alone = [await _without_distributions(baseline, candidate, each, tokens) for each in asked]
        again = alone
    ours = [await candidate.greedy(each, tokens, top) for each in asked]
    prompts = []
    for index, (prompt, answer) in enumerate(zip(asked, alone, strict=True)):
        before = await candidate.tokenize(prompt)
        theirs = list(answer.tokens)[: _LONGEST - len(before)]
        tops = await _seen_by(candidate, before, theirs, top, reduced)
        prompts.append(compared(f"{index}", answer, again[index], tops, len(ours[index].tokens)))
    return Parity(
        tuple(prompts),
        reduced=tuple(reduced),
        distributions=any(each.tops for each in alone),
        answers=answers.kept(asked, alone, prompts),
    )


async def _without_distributions(baseline: Server, candidate: Server, prompt: str, tokens: int) -> Greedy:
    body = await baseline.complete(prompt=prompt, max_tokens=tokens, temperature=0)
    text = body["choices"][0].get("text") or ""
    return Greedy(tuple(await candidate.tokenize(text, special=False)), (), text)


async def _seen_by(
    candidate: Server, prompt: list[int], answer: list[int], top: int, reduced: list[str]
) -> Mapping[int, Top]:
    """Return the candidate's distribution by position of the answer: at every one, or where it was asked to go on."""
    if not any(each.startswith(_NOT_FORCED) for each in reduced):
        try:
            return dict(enumerate(await candidate.forced(prompt, answer, top))) if answer else {}
        except RefusedError as error:
            reduced.append(f"{_NOT_FORCED} ({error})")
    found = {}
    for position in range(0, len(answer), _STRIDE):
        step = await candidate.greedy([*prompt, *answer[:position]], 1, top)
        if step.tops:
            found[position] = step.tops[0]
    return found


def compared(name: str, alone: Greedy, again: Greedy, tops: Mapping[int, Top], candidate_tokens: int) -> PromptParity:
    """Put together what one question showed. Only positions behind the same tokens are compared."""
    pairs = [(alone.tops[i], seen) for i, seen in tops.items() if i < len(alone.tops)]
    shared = next((i for i, (a, b) in enumerate(zip(alone.tokens, again.tokens, strict=False)) if a != b), None)
    end = min(len(alone.tops), len(again.tops)) if shared is None else shared + 1
    noise = list(zip(alone.tops[:end], again.tops[:end], strict=False))
    return PromptParity(
        id=name,
        kl=tuple(divergence(a, b) for a, b in pairs),
        agree=tuple(likeliest(seen) == alone.tokens[i] for i, seen in tops.items() if i < len(alone.tokens)),
        noise_kl=tuple(divergence(a, b) for a, b in noise),
        noise_agree=tuple(likeliest(a) == likeliest(b) for a, b in noise),
        baseline_tokens=len(alone.tokens),
        candidate_tokens=candidate_tokens,
    )


def render(parity: Parity) -> str:
    """Write the evidence: one JSON line a question, a task and a feature, then a summary with count and checksum."""
    lines = []
    for kind, entries in (("prompt", parity.prompts), ("task", parity.tasks), ("feature", parity.features)):
        for each in entries:
            fields = asdict(each)
            for name in ("kl", "noise_kl"):
                if name in fields:
                    fields[name] = [round(value, 6) for value in fields[name]]
            lines.append(encode({"kind": kind, **fields}))
    lines += [encode({"kind": "answer", **each}) for each in answers.written(parity.answers)]
    return seal(lines, {"reduced": list(parity.reduced), "distributions": parity.distributions})


def parse(text: str) -> Parity:
    """Read the evidence back, also out of a pod's log; raises ResultCorrupt for one that is not whole."""
    lines, summary = unseal(text)
    found: dict[str, list[Any]] = {kind: [] for kind in _KINDS}
    kept: list[Answer] = []
    for line in lines:
        data = read_object(line)
        kind = str(data.pop("kind", ""))
        try:
            if kind == "answer":
                kept.append(answers.read(data))
                continue
            fields = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
            found[kind].append(_KINDS[kind](**fields))
        except (KeyError, TypeError, ValueError) as error:
            raise ResultCorrupt(f"a line is no evidence ({error}): {line[:80]!r}") from error
    return Parity(
        tuple(found["prompt"]),
        tuple(found["task"]),
        tuple(found["feature"]),
        tuple(summary.get("reduced") or ()),
        bool(summary.get("distributions", True)),
        tuple(kept),
    )

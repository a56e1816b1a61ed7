"""Published findings that a grid can be held against: words, source, the rule that judges each, and its outcome."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from deconattn.probing.findings import BASELINE, SOLVED, Findings, Kind, Problem, percent
from deconattn.probing.request import UNIFORM

Outcome = Literal["agrees", "disagrees", "undecided", "not measured"]

RECALL = ("mqar", "fuzzy-recall", "needle", "induction")
"""Tasks whose answer lies where the context's content says, not its positions."""
CONTENT = (*RECALL, "selective-copy")
CONTEXT = (*CONTENT, "copy", "compress", "parity", "s5", "previous-token", "positional-recall")
"""All tasks but memorisation: none can be solved from the token at hand."""
FIXED = ("rndemb", "fixedseq", "staticemb")
"""Variants whose map does not see the context: it is the same for all, or the static embeddings alone make it."""


@dataclass(frozen=True)
class Judged:
    """What the models of one size say to a claim; `size` is empty where no size has what it asks for."""

    size: str
    outcome: Outcome
    numbers: str

    @property
    def title(self) -> str:
        """The outcome, and whose it is."""
        return ", ".join(filter(None, (self.outcome.capitalize(), self.size)))


@dataclass(frozen=True)
class Evidence:
    """What one problem says to a claim: whether it bears it out, contradicts it, or is open, and its numbers.

    `mute` where nothing can be told from it, as standard attention itself does not solve it.
    """

    bears_out: bool | None
    numbers: str
    mute: bool = False


@dataclass(frozen=True)
class Claim:
    """A published finding.

    Attributes:
        rule: gives the evidence of one size; None of it: the claim was not measured there.
        judges: what the rule asks, in words.
    """

    id: str
    words: str
    source: str
    judges: str
    rule: Callable[[Findings, str], Iterable[Evidence]]

    def judge(self, findings: Findings, size: str) -> Judged:
        """Hold the claim against the models of a size: one contradiction is enough, and all must bear it out."""
        found = list(self.rule(findings, size))
        told = [evidence.bears_out for evidence in found if not evidence.mute]
        outcome: Outcome = "agrees"
        if not found:
            outcome = "not measured"
        elif False in told:
            outcome = "disagrees"
        elif None in told or not told:
            outcome = "undecided"
        return Judged(size, outcome, "; ".join(evidence.numbers for evidence in found))


def judge_all(findings: Findings) -> list[tuple["Claim", list[Judged]]]:
    """Judge every claim at every size at which it was measured, or once where it was measured at none."""
    told = []
    for claim in CLAIMS:
        found = [claim.judge(findings, size) for size in findings.sizes]
        measured = [one for one in found if one.outcome != "not measured"]
        told.append((claim, measured or [Judged("", "not measured", "")]))
    return told


def _problems(findings: Findings, tasks: Iterable[str]) -> list[Problem]:
    wanted = set(tasks)
    return [problem for problem in findings.problems if problem.task in wanted]


def _shown(findings: Findings, problem: Problem, kinds: Iterable[Kind], size: str, difficulty: int) -> str:
    told = []
    for kind in kinds:
        cell = findings.cell(problem, kind, size)
        why = f" (failed with {len(cell.lost)} of its seeds)" if cell.lost else ""
        told.append(f"{kind.label} {percent(cell.interval(difficulty))}{why}")
    return f"{findings.label(problem)} at {findings.axes[problem]} = {difficulty}: {', '.join(told)}"


def _all(solves: Sequence[bool | None], expected: bool) -> bool | None:
    """Tell whether all solve, or all fail to, as expected: one that does not is enough against it."""
    return False if (not expected) in solves else None if None in solves else True


def _solved(findings: Findings, problem: Problem, size: str) -> list[int]:
    """Return the difficulties that standard attention solves."""
    baseline = findings.cell(problem, BASELINE, size)
    return [level for level in findings.difficulties[problem] if baseline.solves(level)]


def _mute(findings: Findings, problem: Problem) -> Evidence:
    words = "standard attention itself clearly solves no difficulty, so that it says nothing"
    return Evidence(None, f"{findings.label(problem)}: {words}", mute=True)


def _solved_by(
    findings: Findings, size: str, tasks: Iterable[str], chosen: Callable[[Kind], bool], expected: bool
) -> Iterator[Evidence]:
    """Say whether the chosen kinds solve, or fail to, the hardest difficulty that standard attention solves.

    Where it solves none nothing can be told of the others.
    """
    for problem in _problems(findings, tasks):
        kinds = [kind for kind in findings.kinds if chosen(kind) and (problem, kind, size) in findings.cells]
        if not kinds:
            continue
        solved = _solved(findings, problem, size)
        if not solved:
            yield _mute(findings, problem)
            continue
        told = [findings.cell(problem, kind, size).solves(solved[-1]) for kind in kinds]
        yield Evidence(_all(told, expected), _shown(findings, problem, (*kinds, BASELINE), size, solved[-1]))


def _softmax_recalls(findings: Findings, size: str) -> Iterator[Evidence]:
    for problem in _problems(findings, ("mqar",)):
        cell = findings.cell(problem, BASELINE, size)
        for level in sorted(cell.scores):
            yield Evidence(cell.solves(level), _shown(findings, problem, [BASELINE], size, level))


def _taylor(findings: Findings, size: str) -> Iterator[Evidence]:
    return _solved_by(findings, size, ("mqar",), lambda kind: kind == Kind("approximate", UNIFORM), False)


def _no_mixing(findings: Findings, size: str) -> Iterator[Evidence]:
    kind, control = Kind("mlp", UNIFORM), "memorise"
    found: list[tuple[str, Evidence]] = []
    for problem in _problems(findings, (*CONTEXT, control)):
        if (problem, kind, size) not in findings.cells:
            continue
        if not _solved(findings, problem, size):
            found.append((problem.task, _mute(findings, problem)))
            continue
        cell, levels = findings.cell(problem, kind, size), findings.difficulties[problem]
        told = [cell.solves(level) for level in levels]
        some = True if True in told else None if None in told else False
        bears_out = None if some is None else some == (problem.task == control)
        found.append((problem.task, Evidence(bears_out, _shown(findings, problem, [kind], size, levels[0]))))
    # To fail elsewhere says nothing of a model that learns nothing at all, nor to memorise of one asked no more.
    both = len({task == control for task, evidence in found if not evidence.mute}) == 2
    for _, evidence in found:
        yield evidence if both or evidence.bears_out is False else replace(evidence, mute=True)


def _one_score(findings: Findings, size: str) -> Iterator[Evidence]:
    return _solved_by(findings, size, RECALL, lambda kind: kind == Kind("nonapproximate", UNIFORM), False)


def _fixed_maps(findings: Findings, size: str) -> Iterator[Evidence]:
    return _solved_by(findings, size, CONTENT, lambda kind: kind.variant in FIXED and kind.pattern == UNIFORM, False)


def _hybrids(findings: Findings, size: str) -> Iterator[Evidence]:
    variants = ("nonapproximate", *FIXED)
    return _solved_by(findings, size, RECALL, lambda kind: kind.variant in variants and kind.pattern != UNIFORM, True)


def _defeats_all(task: str) -> Callable[[Findings, str], Iterator[Evidence]]:
    def rule(findings: Findings, size: str) -> Iterator[Evidence]:
        for problem in _problems(findings, (task,)):
            level, cells = findings.difficulties[problem][-1], findings.cells
            kinds = [kind for kind in findings.kinds if (problem, kind, size) in cells]
            if kinds:
                told = [cells[problem, kind, size].solves(level) for kind in kinds]
                yield Evidence(_all(told, False), _shown(findings, problem, kinds, size, level))

    return rule


ENOUGH = f"{100 * SOLVED:g} %"
_AT_STANDARD = "at the hardest difficulty that standard attention solves"
_LIMIT = "a theorem of lengths that grow: to solve the longest one tried does not refute it, to fail does not prove it"

CLAIMS = (
    Claim(
        "softmax-recalls",
        "Softmax attention recalls by content, however many pairs there are, without more width.",
        "Arora et al. 2023 (Zoology, arXiv 2312.04927), figure 2: accuracy 1.00 at model dimensions 64 to 512 and "
        "lengths 64 to 512, 4 to 64 pairs, the best of four learning rates",
        f"standard attention is above {ENOUGH} at every number of pairs",
        _softmax_recalls,
    ),
    Claim(
        "taylor-recalls-less",
        "At a width at which softmax attention solves MQAR, its second-order Taylor series does not, with many pairs.",
        "Arora et al. 2024 (Based, arXiv 2402.18668), figure 2: accuracy 0.54 to 0.99 by the size of the state, 1.00 "
        "of full attention; feature dimensions 8 to 24 beside a short convolution there, a head's whole width and no "
        "convolution here",
        f"approximate is below {ENOUGH} {_AT_STANDARD}",
        _taylor,
    ),
    Claim(
        "no-mixing",
        "Without mixing of tokens nothing but memorisation can be learned.",
        "Xue et al. 2025 (arXiv 2510.11602), table 1: the uniform MLP at WikiText perplexity 993.5 against 38.1; "
        "memorisation as the control is that of Poli et al. 2024 (MAD, arXiv 2403.17844)",
        f"mlp is below {ENOUGH} at every difficulty of all other tasks that standard attention solves at any, and "
        "above it at one of memorise",
        _no_mixing,
    ),
    Claim(
        "one-score",
        "One score a token, whatever the query, cannot recall by content.",
        "Xue et al. 2025 (arXiv 2510.11602), table 1: the uniform variant at 0.0 % of LAMBADA against 22.9 %",
        f"uniform nonapproximate is below {ENOUGH} {_AT_STANDARD} of {', '.join(RECALL)}",
        _one_score,
    ),
    Claim(
        "fixed-maps",
        "Maps that do not see the context cannot retrieve by content.",
        "Dong et al. 2025 (arXiv 2506.01115): models with fixed random maps form no induction heads and fall behind in "
        "retrieval; Xue et al. 2025, table 1: the uniform variants at 1.3 to 3.3 % of LAMBADA against 22.9 %",
        f"uniform {', '.join(FIXED)} are below {ENOUGH} {_AT_STANDARD} of {', '.join(CONTENT)}",
        _fixed_maps,
    ),
    Claim(
        "hybrids-recall",
        "What fails alone recalls in a hybrid with standard layers.",
        "Xue et al. 2025 (arXiv 2510.11602), table 1: the even hybrids at 20.3 to 23.8 % of LAMBADA against 22.9 %",
        f"hybrids of nonapproximate, {', '.join(FIXED)} are above {ENOUGH} {_AT_STANDARD} of {', '.join(RECALL)}",
        _hybrids,
    ),
    Claim(
        "parity",
        "Parity defeats attention of a fixed depth as its input grows.",
        "Hahn 2020 (TACL 8, 156-171): self-attention cannot model periodic languages unless layers or heads grow with "
        f"the length; {_LIMIT}",
        f"every model is below {ENOUGH} at the longest",
        _defeats_all("parity"),
    ),
    Claim(
        "s5",
        "Products of permutations of five objects defeat every model of a fixed depth as their number grows.",
        "Merrill, Petty and Sabharwal 2024 (arXiv 2404.08819): transformers, S4 and Mamba stay within TC0, where the "
        f"problem is complete for NC1; {_LIMIT}",
        f"every model is below {ENOUGH} at the most steps",
        _defeats_all("s5"),
    ),
)

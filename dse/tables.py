"""Answers as plain text: totals first, then the breakdown. The same in a terminal, in a log and in Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from dse.answers import Figure, PlanAnswer, compared
from dse.kinds.registry import find
from dse.measures import MEASURES, Measure, measure, significant

if TYPE_CHECKING:
    from dse.answers import Run

SHOWN = 20
"""Front members a terminal lists; files hold them all."""


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, left: frozenset[int] = frozenset()) -> str:
    """Aligned columns under a rule; numbers to the right, the columns in `left` to the left."""
    body = [list(cells) for cells in rows]
    widths = [max(len(line[i]) for line in [list(headings), *body]) for i in range(len(headings))]

    def line(cells: Sequence[str]) -> str:
        padded = (text.ljust(widths[i]) if i in left else text.rjust(widths[i]) for i, text in enumerate(cells))
        return "  ".join(padded).rstrip()

    return "\n".join([line(headings), line(["─" * width for width in widths]), *(line(cells) for cells in body)])


def bars(parts: Mapping[str, float], shown: Measure, width: int = 40) -> str:
    """One bar a part, longest first, with its share; parts of nothing are left out."""
    total = sum(parts.values())
    ordered = sorted(((name, value) for name, value in parts.items() if abs(value) > 1e-12 * abs(total)), key=lambda p: -p[1])
    if not ordered:
        return "  (nothing)"
    longest, names = max(abs(value) for _, value in ordered), max(len(name) for name, _ in ordered)
    return "\n".join(
        f"  {words(name).ljust(names)}  {shown.show(value).rjust(9)} {shown.unit}  {value / total * 100:6.1f} %  "
        + "█" * max(1, round(abs(value) / longest * width))
        for name, value in ordered
    )


def words(name: str) -> str:
    """A part's name as people write it."""
    return name.replace("_", " ")


def interval(figure: Figure, shown: Measure) -> str:
    """`12.3 (11.8–13.0)` in the display unit."""
    if figure.low == figure.high:
        return shown.show(figure.value)
    low, high = (significant(shown.shown(end), 3) for end in (figure.low, figure.high))
    return f"{shown.show(figure.value)} ({low}–{high})"


def shown_metrics(run: Run) -> list[Measure]:
    """The objectives, then the figures everybody asks for."""
    wanted = [metric for metric, _ in run.objectives]
    wanted += [metric for metric in find(run.kind).shown if metric not in wanted]
    return [measure(metric) for metric in wanted if run.front and metric in run.front[0].figures]


def front_table(run: Run, most: int = SHOWN) -> str:
    """The front, best by the first objective first."""
    metrics = shown_metrics(run)
    headings = ["#", *(m.heading for m in metrics), "tie", "plan"]
    rows = [
        [str(rank), *(interval(a.figures[m.name], m) for m in metrics), tied(a), plan]
        for rank, (a, plan) in enumerate(zip(run.front[:most], plan_texts(run.front[:most]), strict=True), 1)
    ]
    text = table(headings, rows, left=frozenset({len(headings) - 1}))
    more = len(run.front) - most
    return text + (f"\n… and {more:,} more in front.csv" if more > 0 else "")


def tied(answer: PlanAnswer, most: int = 3) -> str:
    """Ranks it ties with: `2,3,…`."""
    return ",".join([*map(str, answer.ties[:most]), *(["…"] if len(answer.ties) > most else [])])


def place(answer: PlanAnswer) -> str:
    """`64 × H100-80GB-SXM: `, as far as the plan says."""
    device, devices = answer.plan.get("device"), answer.plan.get("devices")
    if "prefill.device" in answer.plan:  # pools of kinds of their own, which the plan names
        device = None
    count = f"{devices:,} × " if devices is not None else ""
    return f"{count}{device}: " if device else f"{devices:,} devices: " if devices is not None else ""


def plan_texts(answers: Sequence[PlanAnswer]) -> list[str]:
    """Each plan in one line, its devices before it where they tell some of these plans apart."""
    places = [place(answer) for answer in answers]
    alike = len(set(places)) < 2
    return [answer.text if alike else said + answer.text for said, answer in zip(places, answers, strict=True)]


def run_page(run: Run) -> str:
    """What `dse run` prints."""
    blocks = [f"{run.name}\n{run.title}"]
    if run.front:
        blocks += [_front_heading(run), front_table(run)]
        blocks += [f"#1: {place(run.front[0])}{run.front[0].text}\n{breakdown(run.front[0])}"]
        refused = run.front[0].figures.get("refused")
        if refused is not None and refused.value > 0:
            long = "longer than the context or than the whole cache"
            blocks += [f"#1 refuses {refused.value:,.0f} of the requests: they are {long}, and count as outside the SLO."]
    else:
        blocks += [nothing_fits(run)]
    if baseline_text(run):
        blocks.append(baseline_text(run))
    blocks.append(certificate_text(run))
    if run.folder is not None:
        blocks.append(f"{run.folder}/report.html")
    return "\n\n".join(blocks)


def _front_heading(run: Run) -> str:
    objectives = ", ".join(f"{'max' if maximise else 'min'} {measure(m).title}" for m, maximise in run.objectives)
    plans = "1 plan" if len(run.front) == 1 else f"{len(run.front):,} plans"
    return f"Front: {plans} ({objectives}); intervals in brackets"


def breakdown(answer: PlanAnswer) -> str:
    """Where the plan's time and memory go."""
    blocks = []
    for metric, _ in find(answer.kind).breakdowns:
        if metric in answer.figures and answer.parts.get(metric):
            shown = measure(metric)
            total = interval(answer.figures[metric], shown)
            blocks.append(f"{shown.title}: {total} {shown.unit}\n{bars(answer.parts[metric], shown)}")
    return "\n".join(blocks)


def plan_page(answer: PlanAnswer) -> str:
    """One plan: its figures, then the breakdown."""
    names = max((len(measure(m).title) for m in answer.figures), default=0)
    lines = [
        f"  {measure(m).title.ljust(names)}  {interval(figure, measure(m))} {measure(m).unit}".rstrip()
        for m, figure in sorted(answer.figures.items(), key=lambda item: _order(item[0]))
    ]
    verdict = "" if answer.feasible else "\nDoes not fit: " + lacking(answer)
    head = f"{place(answer)}{answer.text}\nevidence: {answer.evidence}{verdict}"
    return "\n".join([head, *lines, "", breakdown(answer)]).rstrip()


def _order(metric: str) -> int:
    return list(MEASURES).index(metric) if metric in MEASURES else len(MEASURES)


def lacking(answer: PlanAnswer) -> str:
    """Which constraints a plan breaks and by how much, worst first; memory before all, without which nothing runs."""
    broken = [item for item in answer.violation.items() if item[1] > 0]
    broken.sort(key=lambda item: (item[0] != "memory", -item[1]))
    if broken and broken[0][0] == "memory":  # a rate without a cache says nothing
        broken = [item for item in broken if item[0] != "rate"]
    return "; ".join(_broken(answer, name, excess) for name, excess in broken) or "nothing"


def _broken(answer: PlanAnswer, constraint: str, excess: float) -> str:
    """`device memory: 90.1 GiB needed, 79.2 GiB allowed (13.8 % over)`; `constraint` is a metric or `metric <= limit`."""
    told = find(answer.kind).lacking.get(constraint)
    if told is not None:
        return told(answer, excess)
    metric, _, rest = constraint.partition(" ")
    shown, lower = measure(metric), rest.startswith(">=")
    if metric not in answer.figures:
        return f"{constraint}: {excess * 100:.1f} % {'short' if lower else 'over'}"
    value = answer.figures[metric].value
    limit = float(rest.split()[1]) if rest else value / (1 + excess)
    have, want = shown.show(value, with_unit=True), shown.show(limit, with_unit=True)
    if lower:
        return f"{shown.title}: {have}, at least {want} asked ({excess * 100:.1f} % short)"
    return f"{shown.title}: {have} needed, {want} allowed ({excess * 100:.1f} % over)"


def limit_text(constraint: str) -> str:
    """A constraint by its name, its limit in the unit that the metric is shown in: `memory <= 70.00 GiB`."""
    metric, _, rest = constraint.partition(" ")
    way, _, limit = rest.partition(" ")
    if way not in ("<=", ">=") or metric not in MEASURES:
        return constraint
    return f"{metric} {way} {measure(metric).show(float(limit), with_unit=True)}"


def nothing_fits(run: Run) -> str:
    """What is closest when no plan keeps every constraint."""
    if run.closest is None:
        c = run.certificate
        if c["failed"]:
            return "No plan could be predicted; the certificate says why."
        if c["evaluated"] or sum(c["pruned"].values()):
            return "No plan is feasible: those that were looked at break a constraint, and the certificate says which."
        return "No plan is possible at all: structure leaves nothing to choose from (see what it removed below)."
    closest = run.closest
    conflict = run.certificate.get("conflict") or ()
    together = f"No plan keeps {' and '.join(conflict)} together; without any one of them some do."
    told = ("", f" None keeps {''.join(conflict)}.", f" {together}")[min(len(conflict), 2)]
    return (
        f"No plan is feasible.{told} The closest:\n  {place(closest)}{closest.text}\n  {lacking(closest)}\n{breakdown(closest)}"
    )


def baseline_text(run: Run) -> str:
    """Today's plan, and what the front's members gain over it; or why the model says nothing of it."""
    if run.baseline is None:
        reason = run.certificate.get("baseline_failed")
        return f"Baseline: the model could not predict it: {reason}" if reason else ""
    base = run.baseline
    fits = "" if base.feasible else f"\n  does not fit: {lacking(base)}"
    lines = [f"Baseline: {place(base)}{base.text}{fits}"]
    for m, _ in run.objectives:
        lines.append(f"  {measure(m).title}: {interval(base.figures[m], measure(m))} {measure(m).unit}".rstrip())
    lines += [f"  #{i} against it: {compared(a, base, run.objectives)}" for i, a in enumerate(run.front[:3], 1)]
    return "\n".join(lines)


def certificate_text(run: Run) -> str:
    """How much of the space the answer covers, in words."""
    c = run.certificate
    pruned = sum(c["pruned"].values())
    reasons = ", ".join(f"{count:,} by {limit_text(reason)}" for reason, count in c["pruned"].items() if count)
    if c["complete"]:
        head = f"Certificate: complete. All {c['space']:,} legal plans are accounted for"
    else:
        missed = [f"{c[key]:,} {said}" for key, said in (("failed", "failed"), ("unvisited", "were not looked at")) if c[key]]
        why = f" ({c['stopped']})" if c.get("stopped") else ""
        head = f"Certificate: incomplete{why}. Of {c['space']:,} legal plans {' and '.join(missed)}"
    tail = f"{c['evaluated']:,} evaluated, {pruned:,} ruled out by bounds" + (f" ({reasons})" if reasons else "")
    if c.get("failed_by_reason"):
        tail += "; failed: " + ", ".join(f"{count:,} × {reason}" for reason, count in c["failed_by_reason"].items())
    if c.get("bound_failed_by_reason"):
        told = ", ".join(f"{count:,} × {reason}" for reason, count in c["bound_failed_by_reason"].items())
        tail += f"; the model's bound raised, so that nothing was ruled out for these: {told}"
    if c.get("stages"):
        return f"{head}: {tail}.\n{_stages_text(run)}\n{run.wall_s:.1f} s, {run.cpu_s:.1f} CPU-s."
    proven, sampled = "no plan outside the front beats it under this model", "the front is the best of what was looked at"
    verdict = proven if c["complete"] else sampled
    return f"{head}: {tail}{'; ' + verdict if run.front else ''}.\n{run.wall_s:.1f} s, {run.cpu_s:.1f} CPU-s."


def _stages_text(run: Run) -> str:
    """What each fidelity saw, and what that proves."""
    (cheap, looked), (dear, saw) = run.certificate["stages"]
    left = run.certificate["contenders_left"]
    rest = (
        f"{left:,} more might still change the front (search.simulate lets more be looked at)"
        if left
        else "the others lose to the front even at the gaps seen between the two, which is evidence and no proof"
    )
    told = f"Stages: {cheap} {looked:,} plans, {dear} {saw:,} of them; the front is of the {dear}; {rest}."
    proven, unchallenged = (run.certificate.get(key, []) for key in ("front_proven", "front_unchallenged"))
    if not unchallenged:
        return told
    counts = sum(proven), sum(unchallenged) - sum(proven), len(unchallenged) - sum(unchallenged)
    return told + " Of its members {} proven, {} unchallenged at the gaps seen, {} sampled.".format(*counts)

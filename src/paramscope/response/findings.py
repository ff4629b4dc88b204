"""What the study found, in words and as a table, from the statistics of every rule."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from paramscope.names import CONTROLS

Record = Mapping[str, Any]
KINDS = {"gap": "loss gap", "auc": "loss attack's AUC"}
Verdict = Literal["separates", "reversed", "not shown", "undefined"]
ALPHA = 0.05


@dataclass(frozen=True)
class Finding:
    """One rule's separation in one measure of membership.

    Attributes:
        rule: of the partition.
        measure: gap or auc.
        verdict: `separates` where S is above 0 and `reversed` where it is below, its 95%
            interval without 0 and S beyond the null; `not shown` otherwise; `undefined`
            where there is no S.
        value: S, with its interval low to high.
        null_low: of the band of random partitions' S, to null_high.
        p_null: of S among them.
        sentence: all that in words.
    """

    rule: str
    measure: str
    verdict: Verdict
    value: float
    low: float
    high: float
    null_low: float
    null_high: float
    p_null: float
    sentence: str


def findings(records: Sequence[Record]) -> list[Finding]:
    """A finding a rule and measure, the control left out, in the order given."""
    return [
        _finding(record, kind)
        for record in records
        if record["rule"] not in CONTROLS
        for kind in KINDS
        if kind in record["separation"]
    ]


def findings_record(found: Sequence[Finding]) -> list[dict[str, Any]]:
    """As nested plain values."""
    return [asdict(one) for one in found]


def paragraph(found: Sequence[Finding], model: str) -> str:
    """The findings in plain words, Markdown: an answer first, then a line a rule and measure."""
    shown = [one for one in found if one.verdict == "separates"]
    if shown:
        rules = ", ".join(f"`{rule}`" for rule in dict.fromkeys(one.rule for one in shown))
        answer = f"In {model}, memory is told from function by {rules}."
    else:
        answer = f"In {model}, no partition that was tried tells memory from function."
    lines = [f"- {one.sentence}" for one in found]
    once = "That is of one training seed; `replicates` tell whether the next model says the same."
    return "\n".join([f"{answer} {once}", "", *lines]) + "\n"


def latex(found: Sequence[Finding], records: Sequence[Record]) -> str:
    """A table of the separation scores for a paper (booktabs), a row a rule."""
    sizes = {record["rule"]: record["classes"] for record in records}
    rows = []
    for rule in dict.fromkeys(one.rule for one in found):
        by_kind = {one.measure: one for one in found if one.rule == rule}
        units = [
            str(sizes[rule].get(label, {}).get("n_units", 0)) for label in ("W_func", "W_sens")
        ]
        cells = [cell for kind in KINDS if kind in by_kind for cell in _cells(by_kind[kind])]
        rows.append(" & ".join([rf"\texttt{{{rule.replace('_', chr(92) + '_')}}}", *units, *cells]))
    head = (
        r"rule & $n_\mathrm{func}$ & $n_\mathrm{sens}$ & $S_\mathrm{gap}$ [95\%] & "
        r"$p_\mathrm{null}$ & $S_\mathrm{AUC}$ [95\%] & $p_\mathrm{null}$"
    )
    body = " \\\\\n".join(rows)
    return (
        "\\begin{tabular}{lrrlrlr}\n\\toprule\n"
        f"{head} \\\\\n\\midrule\n{body} \\\\\n\\bottomrule\n\\end{{tabular}}\n"
    )


def _finding(record: Record, kind: str) -> Finding:
    score = {name: math.nan if x is None else x for name, x in record["separation"][kind].items()}
    value, low, high = score["value"], score["low"], score["high"]
    null_low, null_high = score.get("null_low", math.nan), score.get("null_high", math.nan)
    p = score.get("p_null", math.nan)
    verdict = _verdict(value, low, high, null_low, null_high, p)
    return Finding(
        record["rule"], kind, verdict, value, low, high, null_low, null_high, p,
        _sentence(record, kind, verdict, score),
    )  # fmt: skip


def _verdict(
    value: float, low: float, high: float, null_low: float, null_high: float, p: float
) -> Verdict:
    if not math.isfinite(value):
        return "undefined"
    beyond = p <= ALPHA and (value > null_high or value < null_low)
    if low > 0 and beyond:
        return "separates"
    if high < 0 and beyond:
        return "reversed"
    return "not shown"


def _sentence(record: Record, kind: str, verdict: Verdict, score: Mapping[str, float]) -> str:
    what = f"`{record['rule']}`, {KINDS[kind]}: "
    if verdict == "undefined":
        because = next(
            (n for n in record["notes"] if n.startswith(f"separation of {kind}")), "no units"
        )
        return what + f"no score ({because.removeprefix(f'separation of {kind}: ')})."
    interval = f"S = {score['value']:.2f} [{_told(score['low'])}, {_told(score['high'])}]"
    times = 2 ** abs(score["value"])
    compared = (
        f"at equal perplexity, noise in W_sens takes {times:.2g} times what noise in W_func takes"
        if score["value"] >= 0
        else f"at equal perplexity, noise in W_func takes {times:.2g} times what W_sens's takes"
    )
    n, null = score["n"], score.get("null_low", math.nan)
    if math.isnan(null):
        against = "no null band to set it against"
    else:
        band = f"[{_told(score['null_low'])}, {_told(score['null_high'])}]"
        against = f"random partitions have {band}, p = {score['p_null']:.2g}"
    verdicts = {
        "separates": "It separates",
        "reversed": "It separates the wrong way round",
        "not shown": "No separation is shown",
    }
    return f"{what}{verdicts[verdict]}: {compared} ({interval}, {n:.0f} seeds; {against})."


def _cells(one: Finding) -> list[str]:
    if not math.isfinite(one.value):
        return ["--", "--"]
    interval = f"${one.value:.2f}$ [{_told(one.low)}, {_told(one.high)}]"
    return [interval, "--" if math.isnan(one.p_null) else f"{one.p_null:.2g}"]


def _told(end: float) -> str:
    return "open" if math.isnan(end) else f"{end:.2f}"

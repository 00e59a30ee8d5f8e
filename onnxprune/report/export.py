"""What `export` prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from onnxprune.export import Exported
from onnxprune.export.precision import Step
from onnxprune.measure.validation import Accuracy
from onnxprune.report import text


def print_export(made: Exported) -> None:
    """Tables on stdout: the files, what each step costs, what mobile providers make of the graph, what to know."""
    console = Console()
    console.print(f"[bold]{made.folder}[/bold]  for {made.target}, made in {made.seconds:.0f} s\n", highlight=False)
    console.print(_files(made), "")
    if len(made.graphs) > 1 and (evidence := made.artefacts[0].evidence) is not None:
        title = text.metric_title(evidence.accuracy.metric)
        console.print(f"All graphs together: {title} {_accuracy(evidence.accuracy)}\n", highlight=False)
    if made.dense_bytes:
        console.print(_share(made))
    if made.steps:
        console.print(steps_table(made.steps), "")
    if made.vocabulary:
        console.print(_vocabulary(made), highlight=False)
    if made.usability:
        console.print(_usability(made), "")
    for line in (*made.advice, *made.said):
        console.print(f"  - {line}", highlight=False, soft_wrap=True)


def _share(made: Exported) -> str:
    """How much of the dense model's size is left; of several graphs, of all."""
    if len(made.graphs) > 1:
        own, what = sum(a.bytes for a in made.artefacts if a.file in made.graphs), "all graphs are"
    else:
        own, what = made.artefacts[0].bytes, f"{made.artefacts[0].file} is"
    return f"{what} {own / made.dense_bytes:.0%} of the dense model's {text.size(made.dense_bytes)}\n"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0), title_style="bold")
    for name in columns:
        table.add_column(name)
    return table


def _files(made: Exported) -> Table:
    judged = len(made.graphs) == 1 and any(a.evidence is not None for a in made.artefacts)
    placed = any(a.placement for a in made.artefacts)
    columns = ("file", "for", "numbers", "size", "off by", *(("accuracy",) * judged), *(("placement",) * placed))
    table = _table("Models", *columns)
    table.columns[0].no_wrap, table.columns[0].min_width = True, max(len(a.file) for a in made.artefacts)
    for a in made.artefacts:
        accuracy = _accuracy(a.evidence.accuracy if a.evidence else None)
        off = "" if a.agreement is None else f"{a.agreement.max_rel:.1e}"
        table.add_row(
            a.file,
            a.purpose,
            a.scheme or "fp32",
            text.size(a.bytes),
            off,
            *((accuracy,) * judged),
            *((a.placement,) * placed),
        )
    return table


def steps_table(steps: Sequence[Step], spelled: Callable[[str], str] = str) -> Table:
    """Each step alone and both together, against the dense model; `spelled` is how the console writes."""
    timed = any(step.latency is not None for step in steps)
    columns = ("step", "size", "accuracy", "agreement", "explained", "KL", *(("speed-up",) if timed else ()))
    table = _table("Step by step, against the dense model", *columns)
    for step in steps:
        agreement = "" if step.drift is None or step.drift.agreement is None else f"{step.drift.agreement:.1%}"
        left = None if step.drift is None else step.drift.explained_variance
        explained = "" if left is None else text.explained(left)
        kl = "" if step.drift is None or step.drift.kl is None else f"{step.drift.kl:.4f}"
        cells = [step.name, text.size(step.bytes), _accuracy(step.accuracy), agreement, explained, kl]
        if step.latency is not None:
            low, high = step.latency.speedup_interval
            cells.append(f"{step.latency.speedup:.2f}× [{low:.2f}, {high:.2f}]")
        table.add_row(*map(spelled, cells))
    return table


def _accuracy(held: Accuracy | None) -> str:
    if held is None:
        return ""
    return f"{text.metric_value(held, held.pruned)} ({text.drop(held)})"


def _vocabulary(made: Exported) -> str:
    told = made.vocabulary
    assert told is not None
    return (
        f"Vocabulary: {told['kept']:,} of {told['tokens']:,} tokens kept; they cover {told['covered']:.1%} of the "
        f"corpus and {told['covered_unseen']:.1%} of lines held out of the count\n"
    )


def _usability(made: Exported) -> Table:
    table = _table("Mobile providers", "provider", "form", "nodes", "partitions", "worth it", "on the CPU")
    for u in made.usability:
        table.add_row(
            u.provider, u.stage, f"{u.supported}/{u.nodes}", str(u.partitions), u.verdict, ", ".join(u.missing)
        )
    return table

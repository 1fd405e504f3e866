"""What `pathlens fit` says of a fitted bundle."""

from rich.console import Console
from rich.table import Table

from pathlens.bundle.store import Bundle
from pathlens.description import ClassPathwaySelection, TransferFigures

LARGEST_TABLE = 20
# Where no bound was asked for: a mask that makes half of all images its class is hardly more than a label.
_MOST_FORCING = 0.5


def print_summary(bundle: Bundle, console: Console) -> None:
    """Print how the class pathways transfer, with their random controls and the masks by frequency beside them."""
    bank = bundle.bank
    columns = ["class", "images", "sparsity", "agreement", "forcing", "random\nagr./forc."]
    both_sided = _is_trained(bundle)
    if both_sided:
        columns.append("by frequency\nspars.: agr./forc.")
    ablation = bank.replacement.ablation.value
    title = f"{len(bank)} of {len(bundle.labels)} classes have a pathway (ablation: {ablation})"
    table = Table(title=title)
    for heading in columns:
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for label, statistics in list(bank.statistics.items())[:LARGEST_TABLE]:
        mask, frequent = statistics.stored, statistics.by_frequency
        cells = [
            f"{mask.sparsity:.1%}",
            _percent(mask.figures.agreement),
            _percent(mask.figures.forcing),
            _both(mask.random_control),
        ]
        if both_sided:
            cells.append(f"{frequent.sparsity:.0%}: {_both(frequent.figures)}")
        table.add_row(bundle.labels[label], str(statistics.image_count), *cells)
    if len(bank) > LARGEST_TABLE:
        table.caption = f"and {len(bank) - LARGEST_TABLE} more"
    console.print(table)
    counts = bank.counts.values()
    mean = sum(count.sparsity_sum for count in counts) / max(1, sum(count.images for count in counts))
    console.print(f"Pathways of single images ({bundle.source.value}): {mean:.1%} sparse on average")


def warn(bundle: Bundle, console: Console) -> None:
    """Say what is wrong with a bundle that can be served all the same."""
    statistics = bundle.bank.statistics
    agreement = {label: known.stored.figures.agreement for label, known in statistics.items()}
    lost = [label for label, share in agreement.items() if share is not None and share < 0.5]
    if lost:
        names = ", ".join(bundle.labels[label] for label in lost)
        console.print(
            f"The pathway of {names} keeps less than half of its own class: train longer (--class-steps), or lower "
            "--sparsity or --threshold.",
            style="yellow",
        )
    bound = bundle.fit.settings.get("class_forcing") if _is_trained(bundle) else None
    allowed = float(bound) if isinstance(bound, int | float) else _MOST_FORCING
    forcing = {label: known.stored.figures.forcing for label, known in statistics.items()}
    forced = [label for label, share in forcing.items() if share is not None and share > allowed]
    if forced:
        names = ", ".join(f"{bundle.labels[label]} ({forcing[label]:.0%})" for label in forced)
        limit = f"{allowed:.0%}" if bound is None else f"the {allowed:.0%} that --class-forcing asks for"
        remedy = "train them (--class-pathways two-sided)" if bound is None else "train longer (--class-steps)"
        console.print(
            f"The pathway of {names} turns more than {limit} of the other classes' images into its own: a map of it "
            f"may show the class where there is none. Give more images, or {remedy}.",
            style="yellow",
        )
    largest = max(statistics, key=lambda label: statistics[label].image_count)
    share = statistics[largest].image_count / bundle.fit.images
    if share > 0.5 and len(bundle.labels) > 2:
        console.print(
            f"{share:.0%} of the images are seen as {bundle.labels[largest]}: do --size, --mean, --std and --colour "
            "fit the classifier?",
            style="yellow",
        )


def _is_trained(bundle: Bundle) -> bool:
    return any(known.selection is ClassPathwaySelection.TWO_SIDED for known in bundle.bank.statistics.values())


def _both(figures: TransferFigures) -> str:
    return f"{_percent(figures.agreement)}/{_percent(figures.forcing)}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"

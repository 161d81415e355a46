"""The studies: their models are in `configs/`, the paper's figures in `tables.toml`, notes beside the results."""

from pathlib import Path

from configs.gpu import switch_transformer as gpu
from configs.laptop import switch_transformer as laptop
from moe_jax.claims.figures import read_tables
from moe_jax.configuration import build
from moe_jax.reports.paper import PaperTable, paper_markdown, write_paper_report
from moe_jax.study.study import Finished, Model, Preset, Study

TABLES = {
    study: build(PaperTable, table) for study, table in read_tables(Path(__file__).parent / "tables.toml").items()
}

TIMED = ("experts", "experts_longer", "architectures", "precision", "attention")
"""Studies for which the paper says how fast its models are."""

# A spread over seeds needs more of them than a mean, and so do means that differ by less than seeds do.
LAPTOP_SEEDS = {"experts_longer": 4, "initialization": 6}


def make_study(name: str) -> Study:
    """Returns the study of one of the paper's tables."""
    table = TABLES[name]

    def report(finished: Finished) -> str:
        """Writes the report and returns its table."""
        path = write_paper_report(finished.rows, finished.directory, table, finished.command)
        return f"{table.title}\n{paper_markdown(finished.rows, table)}\n\nReport: {path}"

    return Study(
        name=name,
        models=tuple(
            Model(f"{name}/{model}", model, baseline=f"{name}/{table.baseline}") for model in laptop.STUDIES[name]
        ),
        presets={
            "quick": Preset(laptop.get_quick_config, 1),
            "laptop": Preset(laptop.get_config, LAPTOP_SEEDS.get(name, 3)),
            "gpu": Preset(gpu.get_config, 3),
        },
        report=report,
        may_diverge=True,
        times_steps=name in TIMED,
    )


STUDIES = tuple(make_study(name) for name in laptop.STUDIES)

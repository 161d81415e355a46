"""The claims of papers beside the committed results: writes `experiments/results/CLAIMS.md`.

    python -m experiments.claims           # writes the report, and prints the number of each verdict
    python -m experiments.claims --check   # writes nothing; exit status 1 if it would change

A claim is a file in `experiments/claims/` with the fields of `moe_jax.claims.claims.Claim`; its `[rule]` decides it.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from moe_jax.claims.claims import judge, read_claims
from moe_jax.claims.figures import flat_figures, read_tables
from moe_jax.configuration import ConfigError
from moe_jax.reports.claims import claims_report, summary_line
from moe_jax.runtime.files import write_whole

HERE = Path(__file__).parent


def figures() -> dict[str, str]:
    """Returns the figures of all papers' tables, by the paper's folder and what its tables call them."""
    return {
        f"{path.parent.name}/{name}": figure
        for path in HERE.glob("*/tables.toml")
        for name, figure in flat_figures(read_tables(path)).items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes or checks the report and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 if the report would change; write nothing")
    parser.add_argument("--claims", type=Path, default=HERE / "claims", help="folder of the claims' files")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of results, and of the report")
    options = parser.parse_args(arguments)
    try:
        judged = [judge(claim, options.results) for claim in read_claims(options.claims, figures())]
    except ConfigError as error:
        print(f"claims: {error}", file=sys.stderr)
        return 2
    report = claims_report(judged, options.results, os.path.relpath(options.claims, options.results))
    path = options.results / "CLAIMS.md"
    print(summary_line(judged))
    if options.check:
        current = path.exists() and path.read_text(encoding="utf-8") == report
        if not current:
            print(
                f"claims: {path} is not what the claims and results give; python -m experiments.claims", file=sys.stderr
            )
        return 0 if current else 1
    write_whole(path, report)
    print(f"Report: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

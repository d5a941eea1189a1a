"""The figure that the README opens with, of studies that `scdgn reproduce` and `scdgn peers` have made.

    python -m benchmarks.opening STUDIES NAME -o versus.png

Macro-F1 on the test batch of every data set under NAME against the mutual information of type and batch among its
training cells, for the tuned methods and the peers; and the means over the data sets, printed, with those of the
exported models, plain and corrected for the test batch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from analysis.information import versus_information
from analysis.peers import table
from analysis.results import grouped, read_all
from analysis.style import styled
from analysis.tables import table2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path)
    parser.add_argument("name")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    studies = read_all(options.studies, [options.name])[0]
    groups = grouped(studies)
    compared = table(groups)
    compared["method"] += compared["settings"].map({"tuned": "", "defaults": " (defaults)"})
    compared["method"] += compared["sees_test"].map({True: " *", False: ""})
    with styled():
        figure = versus_information(table2(groups), compared[compared["kind"] == "peer"])
        figure.savefig(options.output, dpi=130)
    means = compared.groupby("method")[["macro_f1", "accuracy"]].agg(["mean", "count"]).round(3)
    print(means.sort_values(("macro_f1", "mean"), ascending=False).to_string())
    print("* trained on the test cells too, without their types")
    exported = pd.DataFrame(
        {"method": study.method} | {way: scores["macro_f1"] for way, scores in study.summary["model"]["test"].items()}
        for study in studies
    )
    print(f"exported\n{exported.groupby('method').mean().round(3).to_string()}")


if __name__ == "__main__":
    main()

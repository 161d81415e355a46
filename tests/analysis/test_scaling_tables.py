"""Tables of losses: what is read of them, which law they can determine, and what is wrong with them."""

import json

import numpy as np
import pandas as pd
import pytest

from moe_jax.analysis.scaling_tables import choose_law, law_columns, read_losses
from moe_jax.configuration import ConfigError
from tests.analysis.scaling_data import CLARK_TABLE, OUR_RESULTS, TRUTHS, losses


def clark_count(width, layers, attention) -> int:
    """Parameters of a dense Transformer-XL without embeddings: five projections of attention, 8 d**2, two norms."""
    return layers * (5 * width * attention + 8 * width**2 + 4 * width)


def test_our_results_have_the_sizes_of_their_models():
    """Counted by hand: four layers of width 192 with 2 heads, 768 wide networks, a position table."""
    table = read_losses(OUR_RESULTS)
    by_hand = 4 * (4 * 192 * 192 + 2 * 192 * 768 + 2 * 192) + 192 + 32 * 2
    assert set(table["N"]) == {by_hand}
    assert sorted(set(table["E"])) == [1, 4, 16, 64]
    assert set(table["G"]) == {1}
    assert set(table["D"]) == {350 * 16 * 128}
    assert set(table["seed"]) == {0, 1, 2}
    all_experts = by_hand + 2 * (table["E"] - 1) * 2 * 192 * 768
    np.testing.assert_array_equal(table["N_all"], all_experts)
    assert table.groupby("E")["loss"].mean()[1.0] == pytest.approx(4.126, abs=5e-4)


def test_granularity_is_the_share_of_a_dense_network_that_an_expert_is(tmp_path):
    rows = [json.loads(line) for line in OUR_RESULTS.read_text().splitlines()]
    row = next(row for row in rows if row["name"] == "switch-16")
    row["config"]["model"]["moe"]["expert_dim"] = row["config"]["model"]["ffn_dim"] // 4
    (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n")
    assert read_losses(tmp_path / "results.jsonl")["G"].tolist() == [4.0]


def test_the_table_of_clark_et_al_is_whole():
    table = read_losses(CLARK_TABLE)
    assert len(table) == 61
    assert table.groupby("N")["E"].nunique().tolist() == [10, 10, 10, 9, 10, 10]
    smallest, second = sorted(set(table["N"]))[:2]
    assert (smallest, second) == (clark_count(512, 6, 256), clark_count(512, 8, 512))
    assert set(table["E"]) == {2**i for i in range(10)}
    # More parameters, or more experts, lower the loss.
    cells = table.groupby(["N", "E"])["loss"].first().unstack()
    assert cells.size - 1 == cells.count().sum()
    for steps in (cells.diff(), cells.T.diff()):
        values = steps.to_numpy()
        assert (values[np.isfinite(values)] < 0).all()


def test_a_csv_file_may_have_comments_further_columns_and_spaces(tmp_path):
    (tmp_path / "table.csv").write_text("# from nowhere\nmodel, N, loss\na, 1e6, 4.0\nb, 4e6, 3.5\nc, 16e6, 3.1\n")
    table = read_losses(tmp_path / "table.csv")
    assert choose_law(table) == "power"
    assert law_columns(table, "power")["N"].tolist() == [1e6, 4e6, 16e6]


@pytest.mark.parametrize("law", TRUTHS)
def test_the_law_chosen_is_the_one_that_a_table_is_made_for(law):
    assert choose_law(losses(law, *TRUTHS[law])) == law


def test_the_law_chosen_for_our_results_is_of_experts_alone():
    assert choose_law(read_losses(OUR_RESULTS)) == "experts"


def test_few_experts_do_not_show_saturation():
    table = losses("routed", TRUTHS["routed"][0], {"N": [1e6, 4e6, 16e6], "E": [1.0, 8.0, 64.0]})
    assert choose_law(table) == "bilinear"
    with pytest.raises(ConfigError, match="distinct E of TABLE is 3; accepted: at least 4 with law 'routed'"):
        law_columns(table, "routed")


def test_the_fine_grained_law_takes_all_parameters_of_our_results():
    table = losses("fine_grained", *TRUTHS["fine_grained"])
    both = table.assign(N_all=table["N"], N=table["N"] / 43)
    np.testing.assert_array_equal(law_columns(both, "fine_grained")["N"], table["N"])


def routed(**columns) -> pd.DataFrame:
    return losses("routed", *TRUTHS["routed"]).assign(**columns)


@pytest.mark.parametrize(
    ("table", "law", "says"),
    [
        (routed().drop(columns="E"), "routed", "E is not a column of TABLE, which has N, loss; E is experts per"),
        (routed().drop(columns="loss"), "routed", "loss is not a column of TABLE"),
        (routed().drop(columns="N").rename(columns={"E": "G"}), "fine_grained", "N is not a column"),
        (routed(loss=0.0), "routed", "loss is 0.0 in row 1 of TABLE; accepted: a positive number"),
        (routed(loss=np.nan), "routed", "loss is nan in row 1"),
        (routed(loss=np.inf), "routed", "loss is inf in row 1"),
        (routed(loss="low"), "routed", "loss is low in row 1"),
        (routed(E=0.0), "routed", "E is 0.0 in row 1 of TABLE; accepted: a number of at least 1"),
        (routed(N=-1e6), "routed", "N is -1000000.0 in row 1"),
        (routed().iloc[:6], "routed", "rows of TABLE is 6; accepted: at least 7 with law 'routed', which has 6"),
        (routed().iloc[:10], "routed", "distinct N of TABLE is 1; accepted: at least 2"),
        (routed(), "power", "E is 1, 2, 4, 8; accepted: a single value with law 'power', which has no E"),
        (routed(G=np.arange(70.0) + 1), "routed", "G is 1, 2, 3, 4; accepted: a single value"),
        (routed(), "experts", "N is 1.5e[+]07, .*accepted: a single value with law 'experts'"),
        (routed(), "linear", "law is 'linear'; accepted: bilinear, dense"),
    ],
)
def test_a_table_that_cannot_determine_a_law_is_refused(table, law, says):
    with pytest.raises(ConfigError, match=says):
        law_columns(table, law)


def test_without_any_law_the_table_is_described():
    with pytest.raises(
        ConfigError, match="TABLE has 2 rows with distinct values 1 of N, 2 of loss; accepted: a table with loss and"
    ):
        choose_law(pd.DataFrame({"N": [1e6, 1e6], "loss": [3.0, 3.1]}))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("absent.csv", None, "absent.csv'; accepted: a file"),
        ("empty.csv", "", "No columns to parse"),
        ("broken.csv", 'N,loss\n1,2,3\n"', "accepted: CSV with a header"),
        ("empty.jsonl", "", "accepted: a table with at least one row"),
        ("broken.jsonl", "what\n", "accepted: JSON"),
        ("other.jsonl", '{"a": 1}\n', "which has a row without 'corpus'; accepted: the results.jsonl"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=says):
        read_losses(tmp_path / name)

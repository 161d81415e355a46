"""A report is written whole, its figures with it."""

from matplotlib.figure import Figure

from moe_jax.reports.document import Document, conditions
from moe_jax.reports.tables import markdown_rows
from moe_jax.results.notes import table_digest
from tests.results.fake_rows import fake_rows


def test_a_document_has_its_blocks_in_order_and_nothing_empty(tmp_path):
    document = Document("Walks")
    document.add("One.", "", "Two.")
    document.add_figure(Figure(figsize=(1, 1)), "walk.png", "A walk")
    document.add("## End")
    assert not list(tmp_path.iterdir())
    path = document.write(tmp_path / "deep")
    assert path.read_text() == document.text() == "# Walks\n\nOne.\n\nTwo.\n\n![A walk](walk.png)\n\n## End\n"
    assert (tmp_path / "deep" / "walk.png").read_bytes().startswith(b"\x89PNG")


def test_conditions_name_every_size_that_differs():
    rows = fake_rows(1)
    assert conditions(rows) == (
        "Each model has 4 layers of width 64 and trains for 1,000 steps of 16 sequences of 256 tokens."
    )
    rows[0]["config"]["steps"] = 20
    rows[1]["config"]["model"]["architecture"] = "encoder_decoder"
    assert "4 layers in each stack of width 64 and trains for 20 or 1,000 steps" in conditions(rows)


def test_notes_are_those_of_the_table(tmp_path):
    (tmp_path / "results.jsonl").write_text("{}\n")
    (tmp_path / "notes.md").write_text(
        f"On `{table_digest(tmp_path / 'results.jsonl')}`, digest of another kind.\n\n- a\n"
    )
    document = Document("Walks")
    document.add_notes(tmp_path)
    assert document.text() == "# Walks\n"
    (tmp_path / "notes.md").write_text(f"With digest `{table_digest(tmp_path / 'results.jsonl')}`.\n\n- a: one\n")
    document.add_notes(tmp_path)
    assert document.text() == "# Walks\n\n## Notes\n\n- a: one\n"


def test_columns_of_a_table_lean_as_asked():
    cells = [["a", "b", "c"], ["1", "2", "3"]]
    assert markdown_rows(cells).splitlines()[1] == "| --- | ---: | ---: |"
    assert markdown_rows(cells, right=[1]) == "| a | b | c |\n| --- | ---: | --- |\n| 1 | 2 | 3 |"

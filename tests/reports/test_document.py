"""A report is written whole, its figures with it."""

from matplotlib.figure import Figure

from moe_jax.reports.document import Document
from moe_jax.reports.tables import markdown_rows


def test_a_document_has_its_blocks_in_order_and_nothing_empty(tmp_path):
    document = Document("Walks")
    document.add("One.", "", "Two.")
    document.add_figure(Figure(figsize=(1, 1)), "walk.png", "A walk")
    document.add("## End")
    assert not list(tmp_path.iterdir())
    path = document.write(tmp_path / "deep")
    assert path.read_text() == document.text() == "# Walks\n\nOne.\n\nTwo.\n\n![A walk](walk.png)\n\n## End\n"
    assert (tmp_path / "deep" / "walk.png").read_bytes().startswith(b"\x89PNG")


def test_columns_of_a_table_lean_as_asked():
    cells = [["a", "b", "c"], ["1", "2", "3"]]
    assert markdown_rows(cells).splitlines()[1] == "| --- | ---: | ---: |"
    assert markdown_rows(cells, right=[1]) == "| a | b | c |\n| --- | ---: | --- |\n| 1 | 2 | 3 |"

"""Notes are read only beside the table that they are about."""

from moe_jax.results.notes import read_notes, table_digest
from moe_jax.results.rows import append_row


def test_notes_are_left_out_once_their_table_has_changed(tmp_path):
    assert read_notes(tmp_path) == ""
    table = tmp_path / "results.jsonl"
    append_row(table, {"name": "dense"})
    notes = tmp_path / "notes.md"
    notes.write_text(f"On the table with digest `{table_digest(table)}`.\n\n- dense: worse.\n\nMore.\n")
    assert read_notes(tmp_path) == "- dense: worse.\n\nMore."
    append_row(table, {"name": "switch-4"})
    assert read_notes(tmp_path) == ""
    notes.write_text("- dense: worse.\n")
    assert read_notes(tmp_path) == ""

"""Analysis of trained models: their routing, their use of repeated text, and scaling laws."""

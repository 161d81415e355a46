"""What trained models do: who is routed where."""

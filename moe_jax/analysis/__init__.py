"""What trained models do: who is routed where, and what loss to expect of which size."""

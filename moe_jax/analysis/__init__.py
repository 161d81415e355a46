"""What trained models do: who is routed where, what they answer, and what loss to expect of which size."""

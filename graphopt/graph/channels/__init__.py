"""Channel analysis."""

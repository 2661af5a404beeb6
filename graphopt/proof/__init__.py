"""Proving what passes did: sessions, outputs, the comparison and its review, and time."""

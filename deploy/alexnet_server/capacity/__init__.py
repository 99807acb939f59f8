"""Capacity on paper: what a fleet must hold for a given load, and how it behaves. ``deploy/CAPACITY.md`` is made here."""

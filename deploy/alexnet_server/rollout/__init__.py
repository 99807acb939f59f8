"""Releases without downtime on one server: stage, warm, compare, switch, go back."""

"""Prometheus for the service: objectives and their rules, the panels people look at, and a Prometheus to try them with."""

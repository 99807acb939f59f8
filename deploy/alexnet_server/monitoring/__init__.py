"""Prometheus rules, dashboards and a local Prometheus for the service."""

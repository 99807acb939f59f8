"""The model report: what the network looks like inside and how well it holds, as one page and as data."""

from alexnet_export.report.write import Summary, write_report

__all__ = ["Summary", "write_report"]

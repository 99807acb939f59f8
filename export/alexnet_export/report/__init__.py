"""The model report: what the network looks like inside and how well it holds, as one page and as data."""

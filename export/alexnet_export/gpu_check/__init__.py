"""Run every GPU path of a machine once, and compare the results with the limits of its hardware."""

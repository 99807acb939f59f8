"""The model report: a page and a data file about the network, its accuracy and its variants."""

"""Hyper-parameter studies of scDGN, DANN and NN. Imports scdgn; scdgn never imports it."""

"""Finished studies as the chapters read them: results, trials, cells, published numbers."""

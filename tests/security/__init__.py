"""What untrusted files, names and addresses must not do: run, reach outside, be rendered, or be told."""

"""The published study as data and commands."""

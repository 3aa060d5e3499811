"""Wiring only: the Dagster definitions, and the command line that a person uses."""

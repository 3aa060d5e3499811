"""Thin Dagster assets over diffsfsr, and the stores they write (LanceDB, a SQL queue, MLflow)."""

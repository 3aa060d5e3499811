"""The three stores as plain classes, usable without Dagster.

    catalogue.py  faces, their labels and embeddings (LanceDB)
    queue.py      requests for portraits, taken under leases (SQLite or Postgres)
    registry.py   model versions and their aliases (MLflow)
    lance.py      what the catalogue's tables have in common: safe merges, filters, erasure
    runs.py       what training and evaluation log (MLflow)
"""

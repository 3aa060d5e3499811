"""The stores as plain classes, usable without Dagster.

    catalogue.py  faces, their labels and embeddings (LanceDB)
    queue.py      requests for portraits, taken under leases (SQLite or Postgres)
    registry.py   model versions and their aliases (MLflow)
    workspace.py  the folder that state lies in
    lance.py      what the catalogue's tables have in common: safe merges, filters, erasure
    runs.py       what training and evaluation log (MLflow)

Dagster's side of them is assets/resources.py.
"""

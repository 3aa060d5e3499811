"""Checks that compare two numbers obtained apart."""

import dagster as dg

from assets.embeddings import catalogue
from assets.resources import CatalogueResource


@dg.asset_check(asset=catalogue, blocking=True)
def one_row_per_face(catalogue: CatalogueResource) -> dg.AssetCheckResult:
    """No key stands twice in any table of the catalogue."""
    duplicates = catalogue.open.duplicates()
    return dg.AssetCheckResult(passed=duplicates == 0, metadata={"duplicates": duplicates, **catalogue.open.counts()})

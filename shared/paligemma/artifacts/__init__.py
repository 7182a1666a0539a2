"""Artifacts and their records: made whole, recorded last, found, fetched and checked. Asks nothing: that is `lineage`."""

"""Writes, records, fetches and checks artifacts. Questions about them are answered in `lineage`."""

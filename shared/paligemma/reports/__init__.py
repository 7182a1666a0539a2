"""Self-contained HTML pages for people: nothing is fetched, everything a page shows is inside it."""

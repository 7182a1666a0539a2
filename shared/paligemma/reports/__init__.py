"""Self-contained HTML pages for people: a page contains everything that it shows, and fetches nothing."""

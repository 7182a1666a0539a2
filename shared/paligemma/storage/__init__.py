"""Storage on disk and in Google Cloud Storage: locations, atomic writes, transfers."""

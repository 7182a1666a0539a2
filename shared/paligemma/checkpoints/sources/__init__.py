"""Where a checkpoint can come from, and how it is fetched. Begin with `fetch`; each other module handles one kind of source."""

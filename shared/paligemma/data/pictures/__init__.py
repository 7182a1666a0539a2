"""What `paligemma.data.images` stands on: naming a file's format, looking at it before anything is decoded, levels, strips."""

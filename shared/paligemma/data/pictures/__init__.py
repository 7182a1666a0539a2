"""The parts of `paligemma.data.images`: names a file's format, surveys it before decoding, converts levels, makes strips."""

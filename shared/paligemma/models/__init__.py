"""PaliGemma in Flax NNX. Attribute names spell the checkpoint's parameter names, so loading needs no table.

Axis letters used throughout the core: b batch, t text or query position, s key position, p image and text together,
d width, n query heads, k key/value heads, g query heads per key/value head, h head dimension, f hidden width of the
MLP, v vocabulary, l layers.
"""

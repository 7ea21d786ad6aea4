"""Names of the ways in which `SubspaceLinear` computes its logits; apart from it, so that options need no torch."""

LAYOUTS = ("dense", "gather", "tiled")
INT8 = "int8"

"""What every layer reads and writes, over all images: forward passes that stop at a layer, and moments of what they find."""

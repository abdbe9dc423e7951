"""One convolution weight used in both directions, each fused with add, bias and activation."""

"""What the Triton kernels of every operation share. Importing a module of it imports Triton."""

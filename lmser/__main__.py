"""``python -m lmser`` is the command line, and so is ``torchrun --nproc-per-node 2 -m lmser``."""

from lmser.cli import main

if __name__ == "__main__":
    main(prog_name="lmser")

"""`python -m ptycho_torch` is `ptycho-torch`."""

import sys

from ptycho_torch.cli import main

sys.exit(main())

"""`python -m ptycho_exec` is `ptycho-exec`."""

import sys

from ptycho_exec.cli import main

sys.exit(main())

"""`python -m ptycho_exec` is `ptycho-exec`."""

import sys

from ptycho_exec.cli.commands import main

sys.exit(main())

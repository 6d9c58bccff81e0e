"""For all tests: one thread per operation, here and in the processes that tests start.

Networks of tests are tiny, so threads gain nothing; on a busy machine they wait for each other, and a test
of a second takes a minute. This must be set before torch is imported.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

"""`python -m proptim`."""

import sys

from proptim.cli import main

sys.exit(main())

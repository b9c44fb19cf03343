# PYTHON_ARGCOMPLETE_OK
"""`python -m flowdeco`: the command line."""

import sys

from flowdeco.cli import main

if __name__ == "__main__":
    sys.exit(main())

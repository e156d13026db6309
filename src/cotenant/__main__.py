"""`python -m cotenant`: the `cotenant` command."""

import sys

from cotenant.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

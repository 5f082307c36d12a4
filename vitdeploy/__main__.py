"""``python -m vitdeploy``."""

import sys

from vitdeploy.cli import main

if __name__ == "__main__":
    sys.exit(main())

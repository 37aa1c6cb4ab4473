"""`reid embed` as a script."""

import sys

from reid.commands import main

if __name__ == "__main__":
    main(["embed", *sys.argv[1:]], prog_name="reid")

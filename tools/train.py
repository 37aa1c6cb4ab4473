"""`reid train` as a script."""

import sys

from reid.commands import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]], prog_name="reid")

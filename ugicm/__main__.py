import sys

from ugicm.cli import main

sys.exit(main())

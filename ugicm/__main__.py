import sys

from ugicm.commands.main import main

sys.exit(main())

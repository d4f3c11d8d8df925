"""`python -m training` is `seqtrain`."""

import sys

from training.cli import main

sys.exit(main())

"""`python -m jobs VERB ...` is `tidemark VERB ...`."""

from jobs.command_line import main

raise SystemExit(main())

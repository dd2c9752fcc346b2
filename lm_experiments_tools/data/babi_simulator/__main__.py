"""The command: `python -m lm_experiments_tools.data.babi_simulator FOLDER`."""

from . import main

main()

"""`python -m audiollm.inference COMMAND`: the same as `audiollm COMMAND`."""

from audiollm.command_line.cli import main

if __name__ == "__main__":
    main()

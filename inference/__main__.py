"""`python -m audiollm.inference COMMAND`: the same as `audiollm COMMAND`."""

from audiollm.cli import main

if __name__ == "__main__":
    main()

"""`python -m paramscope` is `paramscope`."""

from paramscope.cli.app import main

if __name__ == "__main__":
    main()

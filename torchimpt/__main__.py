"""`python -m torchimpt`: the command line, where its script is not on the path, and for launchers such as torchrun."""

from torchimpt.cli.start import main

if __name__ == "__main__":
    main()

"""`python -m tune_stn`: the command `tune-stn`."""

from tune_stn.cli import main

if __name__ == "__main__":
    main(prog_name="python -m tune_stn")

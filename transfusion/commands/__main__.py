"""`python -m transfusion.commands train ...` is `transfusion train ...`, where no program is installed."""

from transfusion.commands.program import main

if __name__ == "__main__":
    main()

# A researcher compares a system with its base, on a grid with seeds, and plots it.
transfusion prepare --data_dir data digits
transfusion config list
transfusion config diff digits mot
transfusion config print mot --changed
transfusion sweep $CHECKOUT/experiments/first_sweep/sweep.py --workdir runs/grid --dry_run
transfusion sweep $CHECKOUT/experiments/first_sweep/sweep.py --workdir runs/grid --parallel 2
ls runs/grid
transfusion claims list mot_flops --claims $CHECKOUT/experiments/claims

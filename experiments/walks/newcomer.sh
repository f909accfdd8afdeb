# A newcomer looks around, trains a small model, draws and reads.
transfusion --help
transfusion prepare --data_dir data digits
transfusion train --config digits --workdir runs/digits --dry_run
transfusion train --config digits --workdir runs/digits
transfusion train --config digits --workdir runs/digits
transfusion sample --workdir runs/digits --prompt 'a handwritten seven' --output seven.png
transfusion sample --workdir runs/digits --caption seven.png
transfusion sample --workdir runs/digits --prompt 'a cat' --output cat.png
transfusion evaluate --workdir runs/digits
transfusion report --workdir runs/digits
# What may be changed, and what does it mean?
transfusion train --help --config digits | head -60
transfusion sample --help | head -40

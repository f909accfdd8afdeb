# An engineer sends a job to a cluster: a plan first, then a rehearsal, faults included.
transfusion prepare --data_dir data digits
transfusion plan --config transfusion_paper --topology v5e:4x4
bash $CHECKOUT/tpu_setup/tpu.sh up --dry-run --name=digits --project=my-project --zone=us-central2-b --type=v5litepod-64 --slices=2 --spot --bucket=my-bucket --config=configs/digits.py --workdir=bucket/runs/digits --delete-when-done --allow-dirty
# Two processes on this machine, as on two hosts; one is killed on the way.
transfusion train --config digits:debug --workdir runs/pod --supervise --processes 2
transfusion train --config digits --workdir runs/killed --config.checkpoint.every=20 & until [ -d runs/killed/checkpoints/20 ]; do sleep 1; done; kill -9 $!; wait; true
transfusion train --config digits --workdir runs/killed --config.checkpoint.every=20 --config.steps=100
tail -n 1 runs/killed/metrics.jsonl

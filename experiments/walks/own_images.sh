# A student has a folder of 200 pictures of different sizes, with a table of captions.
python $CHECKOUT/experiments/walks/pictures.py photos
transfusion new --images photos --output photos.py
cat photos.py
transfusion config check photos.py
transfusion train --config photos.py --workdir runs/photos --dry_run
transfusion train --config photos.py --workdir runs/photos --config.steps=30 --config.batch_size=4
# One of the pictures as it is, in its own size.
transfusion sample --workdir runs/photos --caption photos/000.png
transfusion sample --workdir runs/photos --prompt 'a handwritten seven' --output seven.png
transfusion evaluate --workdir runs/photos --samples 40
# Longer, at another rate: what has changed is said.
transfusion train --config photos.py --workdir runs/photos --config.steps=40 --config.batch_size=4 --config.optim.learning_rate=0.0005
transfusion report --workdir runs/photos

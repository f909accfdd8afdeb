# Somebody has a language model of transformers, wants it to draw, and gives the result away.
cp $CHECKOUT/experiments/notebooks/images_for_a_language_model.ipynb . && jupyter execute images_for_a_language_model.ipynb
transfusion prepare --data_dir data digits
transfusion train --config digits:debug --workdir runs/small
transfusion publish runs/small ./published
ls ./published
python -c "import transfusion; print(transfusion.load_run('./published'))"

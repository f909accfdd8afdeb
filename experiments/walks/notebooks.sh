# Somebody works in notebooks, on a laptop or in Colab: each from top to bottom, with all of its steps.
cp $CHECKOUT/experiments/notebooks/first_steps.ipynb . && jupyter execute first_steps.ipynb
cp $CHECKOUT/experiments/notebooks/own_images.ipynb . && jupyter execute own_images.ipynb
cp $CHECKOUT/experiments/notebooks/edit_and_chat.ipynb . && jupyter execute edit_and_chat.ipynb
cp $CHECKOUT/experiments/notebooks/new_modality.ipynb . && jupyter execute new_modality.ipynb
cp $CHECKOUT/experiments/notebooks/compare_and_scale.ipynb . && jupyter execute compare_and_scale.ipynb

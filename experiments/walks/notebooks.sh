# Somebody works in notebooks, on a laptop or in Colab: each from top to bottom, with all of its steps.
jupyter execute $CHECKOUT/experiments/notebooks/first_steps.ipynb --output=$PWD/first_steps.ipynb
jupyter execute $CHECKOUT/experiments/notebooks/own_images.ipynb --output=$PWD/own_images.ipynb
jupyter execute $CHECKOUT/experiments/notebooks/edit_and_chat.ipynb --output=$PWD/edit_and_chat.ipynb
jupyter execute $CHECKOUT/experiments/notebooks/new_modality.ipynb --output=$PWD/new_modality.ipynb
jupyter execute $CHECKOUT/experiments/notebooks/compare_and_scale.ipynb --output=$PWD/compare_and_scale.ipynb

"What `make lab` adds to the user's own settings of Jupyter: a notebook is cleaned when it is saved."
from nbdev.clean import clean_jupyter

c = get_config()  # noqa: F821 - Jupyter provides it
c.ContentsManager.pre_save_hook = clean_jupyter

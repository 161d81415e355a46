"""The TFDS data set `python_source`: the code and prose that come with a Python interpreter."""

"""Tests run on one thread (the models are too small for more) and without the progress talk of diffusers."""

import diffusers
import torch
from hypothesis import settings

torch.set_num_threads(1)
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()

settings.register_profile("cotrunk", deadline=None)  # a busy machine is no failure
settings.load_profile("cotrunk")

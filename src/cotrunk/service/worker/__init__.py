"""The worker process: it owns the device, forms groups of waiting images, and generates them.

`loop.py` is its main loop. `admission.py` and `arrivals.py` decide when images stop waiting, and `planning.py` which of
them share. `wave.py` runs groups in one call of the pipeline, and `delivery.py` writes what comes out. `watch.py` is a
thread that gives signs of life, and learns what the API process and its clients want meanwhile.
"""

"""A run on many machines, with Ray. Needs the extra `ray`.

The driver owns the folder of the run as a single machine does. It cuts the plan into waves of whole groups
(`waves.py`), and painters on the machines of a Ray cluster generate them (`painter.py`). A wave is done when its part
of the manifest is there (`manifest.py`): Ray may start a wave twice, or lose what it knows, and no image is lost or
counted twice. The driver starts passes over what is left until nothing is (`loop.py`, `passes.py`).

`serving/` is another use of a cluster: the service as an application of Ray Serve.
"""

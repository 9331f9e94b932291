"""The API process: it accepts, records and answers requests, and supervises the worker. It imports no torch."""

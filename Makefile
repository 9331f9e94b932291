# Most targets: one line that makes the virtual environment and installs, one line that does the job.

demo:
	python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[mini]'
	.venv/bin/cotrunk generate --prompts examples/prompts.txt --out demo --guidance 5 --skip --compare --resume

test:
	python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[dev]'
	.venv/bin/python -m pytest -n auto

docs:
	python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

# docs/compatibility.md and the list in the README, from every pipeline class of diffusers on random weights
compatibility:
	PYTHONPATH=tests .venv/bin/python -m zoo

.PHONY: demo test docs compatibility

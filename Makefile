# Most targets: one line that makes the virtual environment and installs, one line that does the job.

# what touches diffusers most: the loop, the pipelines, skipping, training, the command line
OLDEST = tests/engine tests/pipelines tests/skipping/test_skipping.py tests/training/test_trainer.py tests/cli/test_generate.py \
	tests/test_generation.py tests/zoo

demo:
	python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[mini]'
	.venv/bin/cotrunk generate --prompts examples/prompts.txt --out demo --tolerance 0.04 --compare --resume

test:
	python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[dev]'
	.venv/bin/python -m pytest -n auto

# the service on the embedded model, at http://127.0.0.1:8000
serve:
	python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[mini,serve]'
	$(MAKE) page || echo "The page could not be built: the service has its API only."
	.venv/bin/cotrunk serve --model mini

# the web page of `cotrunk serve`, from page/ into src/cotrunk/service/static
page:
	sh page/npm.sh run build

# some tests with the oldest supported diffusers, which is installed beside the newest
oldest:
	python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[dev]'
	.venv/bin/pip install -q --no-deps --upgrade --target .oldest -r constraints-oldest.txt
	PYTHONPATH=.oldest .venv/bin/python -m pytest -n auto --dist worksteal $(OLDEST)

docs:
	python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

# docs/compatibility.md, from every pipeline class of diffusers on random weights
compatibility:
	PYTHONPATH=tests .venv/bin/python -m zoo

.PHONY: demo test serve page oldest docs compatibility

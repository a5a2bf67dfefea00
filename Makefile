# polytask's commands. `make` lists them.
.PHONY: help install demo test soak lint bench reproduce docs readme lock clean
.DEFAULT_GOAL := help
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

help:  ## list these commands
	@sed -n 's/^\([a-z]*\):.*  ## /  make \1\t/p' Makefile | expand -t 18

install:  ## create .venv with the locked versions (every command below does it first)
	@sh requirements/install.sh

demo: install  ## compare ways to train four tasks on digits: writes demo/report.html
	@echo "Comparing single-task models and ways to train four tasks together, on overlaid digits."
	@$(BIN)/polytask compare multidigits --out demo

test: install  ## run the linter, the type checker and the tests
	@echo "Running the linter, the type checker and the tests."
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/pytest -n 2 --dist worksteal

soak: install  ## run the tests that take minutes each: kills at every moment, clusters, large files
	@echo "Running the long tests."
	@$(BIN)/pytest -n 2 --dist worksteal -m soak

lint: install  ## format the code and mend what the linter can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: install  ## measure polytask beside its peers, as ratios
	@echo "Measuring polytask beside its peers."
	@$(BIN)/python -m benchmarks

reproduce: install  ## run the claims of every written paper: writes claims/
	@echo "Running the claims of every written paper."
	@$(BIN)/polytask reproduce --all

docs: install  ## build the documentation: writes site/
	@echo "Building the documentation into site/."
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

readme: install  ## put the last demo and claims into README.md
	@$(BIN)/python docs/refresh.py

lock: install  ## choose new versions: writes requirements/lock.txt
	@echo "Choosing the newest versions that fit pyproject.toml."
	@$(BIN)/pip install --quiet --disable-pip-version-check uv
	@{ echo '# Exact versions for Python 3.11 and newer, made by `make lock`. What torch needs for a GPU, it asks for itself.'; \
	$(BIN)/uv pip compile --universal --python-version 3.11 --upgrade --no-header --no-annotate --quiet \
		--extra control --extra fast --extra graph --extra onnx --extra ray --extra search --extra tensorboard --extra text --extra web --group dev --group docs pyproject.toml requirements/lock.in \
		| grep -vE '^(nvidia|cuda|triton)\b'; } > requirements/lock.txt.new
	@mv requirements/lock.txt.new requirements/lock.txt

clean:  ## remove what these commands made, but for .venv
	rm -rf demo site build dist .mypy_cache .pytest_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

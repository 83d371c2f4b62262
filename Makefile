# What can be done with lvsguard. On a fresh Debian machine, as root, 'make run'
# and 'make test' need nothing before them.

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unreleased)
GO      ?= go
export CGO_ENABLED = 0

LAB      = $(GO) run ./lab/cmd/lab
BUILD    = $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)'

PREFIX     ?= /usr/local
SYSCONFDIR ?= /etc
UNITDIR    ?= /etc/systemd/system

.PHONY: build cross setup run demo test test-unit test-lab test-all lint fuzz bench install uninstall clean

## build: one static binary, bin/lvsguard
build: bin/lvsguard

bin/lvsguard: $(shell find . -name '*.go' -not -name '*_test.go') go.mod go.sum
	$(BUILD) -o $@ ./cmd/lvsguard

## cross: the binary for every architecture that directors have
cross: bin/386.mod
	GOARCH=amd64 $(BUILD) -o bin/lvsguard-amd64 ./cmd/lvsguard
	GOARCH=arm64 $(BUILD) -o bin/lvsguard-arm64 ./cmd/lvsguard
	GOARCH=386 $(BUILD) -modfile=bin/386.mod -o bin/lvsguard-386 ./cmd/lvsguard

# The pinned google/nftables prints a constant that a 32-bit int cannot hold, and
# so does not compile there. A copy with that one argument converted does.
bin/386.mod: go.mod go.sum
	rm -rf bin/nftables && mkdir -p bin
	$(GO) mod download github.com/google/nftables
	cp -r "$$($(GO) list -m -f '{{.Dir}}' github.com/google/nftables)" bin/nftables
	chmod -R u+w bin/nftables
	sed -i 's/transaction", math.MaxUint32))/transaction", uint32(math.MaxUint32)))/' bin/nftables/conn.go
	cp go.mod bin/386.mod && cp go.sum bin/386.sum
	$(GO) mod edit -replace=github.com/google/nftables=./bin/nftables bin/386.mod

## setup: install what the tests and the lab need
setup:
	./lab/setup

## run: the guard itself where there is IPVS; elsewhere the lab, under a flood
run: setup build
	@if [ -e /proc/net/ip_vs ]; then exec bin/lvsguard run; else \
	  echo "This host has no IPVS (no /proc/net/ip_vs), so there is nothing here to guard."; \
	  echo "Booting the lab instead: a pair of directors under a flood. Ctrl-C ends it."; \
	  exec $(LAB) -live; fi

## demo: the same flood without and with the guard
demo: setup build
	$(LAB) -v -run '^TestDemo$$' ./lab/live

## test: everything that a change must pass, in under 20 minutes
test: setup lint cross test-unit test-lab

test-unit:
	LVSGUARD_PRIVILEGED=1 CGO_ENABLED=1 unshare --net sh -c 'ip link set lo up && exec $(GO) test -race ./...'

# What is measured is in bench: a figure that a busy machine spoils is no fault.
FIGURES = ^Test(Figure|LabCost)
# The night takes minutes, and is in test-all.
NIGHT = ^TestAlone386
test-lab:
	$(LAB) -skip '$(FIGURES)|$(NIGHT)' ./lab/scenario ./ipvs
	$(LAB) -run '^TestHeldTunnels$$' ./keepalived # its kinds of interfaces are modules, which hosts may lack

## test-all: every scenario on every variant of the site
test-all: setup lint cross test-unit
	$(LAB) -variant all -timeout 60m -skip '$(FIGURES)' ./lab/scenario ./ipvs ./nft ./keepalived

bin/staticcheck:
	GOBIN=$(CURDIR)/bin $(GO) install honnef.co/go/tools/cmd/staticcheck@v0.8.2

bin/govulncheck:
	GOBIN=$(CURDIR)/bin $(GO) install golang.org/x/vuln/cmd/govulncheck@v1.6.0

# govulncheck ends with 3 where it found something; with anything else but 0 it
# could not look, as where its database cannot be reached.
lint: bin/staticcheck bin/govulncheck
	@test -z "$$(gofmt -l .)" || { echo "not formatted by gofmt:"; gofmt -l .; exit 1; }
	$(GO) vet ./... && $(GO) vet -tags lab ./lab/...
	bin/staticcheck ./... && bin/staticcheck -tags lab ./lab/...
	@timeout 120 bin/govulncheck ./...; case $$? in \
	  0) ;; 3) exit 1 ;; *) echo "govulncheck did NOT run: see above" ;; esac

## fuzz: every fuzz target for FUZZTIME each
FUZZTIME ?= 20s
fuzz:
	@for pkg in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
	    echo "$$pkg $$target"; $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
	  done; done

## bench: the figures of docs/performance.md
bench: setup build
	bench/setup
	LVSGUARD_PRIVILEGED=1 $(GO) test -run '^$$' -bench . -benchtime 1x ./capture/... ./guard/... ./ipvs ./keepalived ./nft ./lab/flood ./bench/sockets
	$(GO) run ./bench/cmd/bench
	$(LAB) -v -run '$(FIGURES)' ./lab/scenario ./ipvs

## install: the binary, its unit, a commented configuration, keepalived's sample
INSTALLED = sed 's,/usr/sbin/lvsguard,$(PREFIX)/sbin/lvsguard,'
install: build
	install -D -m 0755 bin/lvsguard $(DESTDIR)$(PREFIX)/sbin/lvsguard
	install -d -m 0755 $(DESTDIR)$(UNITDIR) $(DESTDIR)$(PREFIX)/share/doc/lvsguard
	$(INSTALLED) deploy/lvsguard.service >$(DESTDIR)$(UNITDIR)/lvsguard.service
	$(INSTALLED) deploy/keepalived/keepalived.conf >$(DESTDIR)$(PREFIX)/share/doc/lvsguard/keepalived.conf
	test -e $(DESTDIR)$(SYSCONFDIR)/lvsguard/lvsguard.yaml || \
	  install -D -m 0640 deploy/lvsguard.yaml $(DESTDIR)$(SYSCONFDIR)/lvsguard/lvsguard.yaml
	@echo "Installed. Next: systemctl daemon-reload && systemctl enable --now lvsguard && lvsguard status"
	@echo "How to wire keepalived: $(PREFIX)/share/doc/lvsguard/keepalived.conf"

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/sbin/lvsguard $(DESTDIR)$(UNITDIR)/lvsguard.service
	rm -rf $(DESTDIR)$(PREFIX)/share/doc/lvsguard

clean:
	rm -rf bin lab/out

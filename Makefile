# What a developer types. `make test` on a bare Debian or Ubuntu installs what it needs.

.PHONY: test check fmt clippy docs test-tools bench fuzz clients slow audit image-test

# Every test: those of `cargo test`, and those that need a browser, curl, a validator or PostgreSQL.
test: test-tools
	STREAM_PLANS=1000 KILL_ROUNDS=500 cargo test
	OPENAPI_SPEC_VALIDATOR="$(CURDIR)/target/test-tools/bin/openapi-spec-validator" \
		scripts/with-postgres cargo test --test it -- --ignored --test-threads=1

# What a change must pass.
check: fmt clippy docs test

fmt:
	cargo fmt --check

clippy:
	cargo clippy --all-targets -- -D warnings

docs:
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

test-tools:
	scripts/install-test-tools target/test-tools

# The figures that README quotes; BENCH_ONLY=json for a part of them, see there.
bench:
	cargo bench

# The API against its own document, with schemathesis: FUZZ_SECONDS for each of two rounds, 120 if not said otherwise.
fuzz:
	scripts/fuzz

# Packages as their users have them: clients, generated clients, linters and proxies. Takes five minutes; of the proxies, those that
# are installed.
clients:
	scripts/clients/run

# A thousand slow connections in each of slowhttptest's modes. Takes five minutes.
slow:
	scripts/slow-clients

# Licenses, sources and banned crates, by deny.toml. The first time it compiles cargo-deny, which takes minutes.
audit:
	[ -x target/tools/bin/cargo-deny ] || cargo install cargo-deny --version 0.20.2 --locked --root target/tools
	PATH="$(CURDIR)/target/tools/bin:$$PATH" cargo deny check bans licenses sources

# The container image, built and run for real with docker or podman.
image-test:
	scripts/image-test

# What a developer types. `make test` on a bare Debian or Ubuntu installs what it needs.

.PHONY: test check fmt clippy docs test-tools bench image-test

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

# The figures that README quotes; BENCH_ONLY=json, burst, paced, idle or resume for a part of them.
bench:
	cargo bench

# The container image, built and run for real with docker or podman.
image-test:
	scripts/image-test

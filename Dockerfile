# docker build -t ai-service .
# docker run --rm -p 127.0.0.1:8000:8000 ai-service --demo

FROM rust:1.95-bookworm AS build
WORKDIR /build
# The whole context, because .dockerignore is an allow-list of what a build needs.
COPY . .
# The caches keep the registry and the compiled dependencies between builds. They are no part of an image, hence the cp.
# touch: a checkout may be dated before the cached build, and cargo would take that build for the newer one.
RUN --mount=type=cache,id=ai-service-registry,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=ai-service-target,target=/build/target,sharing=locked \
    touch src/lib.rs src/main.rs \
    && cargo build --release --locked \
    && cp target/release/ai-service /ai-service \
    && mkdir /data

# libc, CA certificates and time zones; no shell, no package manager. Debian 12, as in the build stage: the same libc.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /ai-service /usr/local/bin/ai-service
# Where conversations are kept. A volume takes over the owner that the directory has here.
COPY --from=build --chown=65532:65532 /data /data
VOLUME /data
# The default of DATABASE_URL, sqlite://data/ai-service.db, is /data/ai-service.db from here.
WORKDIR /
# In a container, 0.0.0.0 is its own network; what is published decides who gets in. SQLite may need room for more than it
# keeps in memory, and with a read-only file system there may be no other place.
ENV HOST=0.0.0.0 PORT=8000 TZ=UTC SQLITE_TMPDIR=/data
# A number, so that Kubernetes' runAsNonRoot can tell that it is not root.
USER 65532:65532
EXPOSE 8000
STOPSIGNAL SIGTERM
# The program asks itself, because there is no curl here. It gives up after 8 s; the engine must wait longer than that.
HEALTHCHECK --interval=30s --timeout=10s --start-period=5s --retries=3 \
    CMD ["/usr/local/bin/ai-service", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/ai-service"]

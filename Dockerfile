# The gateway with its providers, in an image without a shell: docs/production.md, "Containers".

FROM rust:1.95.0-trixie AS build
WORKDIR /src
COPY . .
# `fixture` misbehaves on demand for the project's tests.
RUN cargo xtask plugins && rm target/plugins/fixture.wasm && \
    install -D -m 644 -t /out/usr/lib/angarium/providers target/plugins/*.wasm
# Line tables are three quarters of the binary; backtraces keep their names without them.
RUN cargo build --release --locked --package angarium --bin angarium && \
    strip --strip-debug target/release/angarium && \
    install -D -m 755 -t /out/usr/local/bin target/release/angarium
RUN install -D -m 644 -t /out/usr/share/doc/angarium LICENSE && mkdir /cache

FROM gcr.io/distroless/cc-debian13:nonroot
COPY --from=build /out /
COPY --from=build --chown=65532:65532 /cache /var/cache/angarium
ENV ANGARIUM_HTTP__LISTEN=0.0.0.0:8080 \
    ANGARIUM_PROVIDERS__FOLDER=/usr/lib/angarium/providers \
    ANGARIUM_PROVIDERS__CACHE_FOLDER=/var/cache/angarium \
    ANGARIUM_LOG__FORMAT=json
USER 65532:65532
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["/usr/local/bin/angarium", "ready"]
ENTRYPOINT ["/usr/local/bin/angarium"]
CMD ["serve"]

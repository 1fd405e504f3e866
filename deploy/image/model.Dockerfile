# An image that holds the archives, to be run in place of the plain one or to be copied from by an init container. Its layers
# are those of pathlens and one with the archives. Build it with the model store as its context: docs/image.md.
ARG BASE=localhost/pathlens:cpu
FROM ${BASE}
COPY --chmod=0644 *.mar /models/

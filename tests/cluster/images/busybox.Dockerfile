# Stands in for docker.io/library/busybox (and, where a shell is all that is wanted, for alpine).
FROM scratch
ARG TARGETARCH
COPY $TARGETARCH/ /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["sh"]
